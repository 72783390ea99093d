"""The same model is the same file, whatever was converted before it."""

from __future__ import annotations

from pathlib import Path

import pytest

from fmdist import storage
from fmdist.compression.export import export_openvino
from fmdist.compression.subject import Subject


@pytest.mark.slow
def test_a_model_converted_twice_is_the_same_file(subject: Subject, tmp_path: Path) -> None:
    for name in ("first", "second"):
        export_openvino(subject.export, tmp_path / f"{name}.xml")
    for end in ("xml", "bin"):
        assert storage.sha256(tmp_path / f"first.{end}") == storage.sha256(tmp_path / f"second.{end}")
