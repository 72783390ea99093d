"""What every compression pass must keep; a new file under `passes/` is tested without writing a test."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmdist import component
from fmdist.compression.config import CompressConfig
from fmdist.compression.pipeline import compress
from fmdist.compression.subject import Subject
from fmdist.deployment import artifact

KINDS = sorted(component.kinds("passes"))


def test_there_are_passes() -> None:
    assert "quantize" in KINDS


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_pass_changes_something_and_its_model_still_runs(
    subject: Subject, tmp_path: Path, kind: str
) -> None:
    settings = {
        "passes": ({"kind": kind},),
        "max_drop": 0.1,
        "calibration_samples": 50,
        "benchmark": {"samples": 10, "batch_size": 8},
    }
    config = CompressConfig.model_validate(settings)
    manifest: dict[str, Any] = compress(subject, config, tmp_path / "artifact").manifest
    (record,) = manifest["passes"]
    assert record["config"] == config.passes[0].to_recipe()
    assert record["after"]
    for runtime, after in record["after"].items():
        before, covered = record["before"][runtime], record["coverage"][runtime]
        assert (after["bytes"], after["gzip_bytes"]) != (before["bytes"], before["gzip_bytes"])
        assert after["drop"] < 0.2
        assert covered["quantized_layers"] + len(covered["left"]) == covered["layers"]
        assert all(layer["reason"] for layer in covered["left"])
        raw = subject.splits.test.raw(np.arange(3))
        answers = artifact.load(tmp_path / "artifact", runtime).predict(raw)
        assert len(answers) == 3
