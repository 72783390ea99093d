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
        "max_drop": 0.3,
        "calibration_samples": 50,
        "benchmark": {"samples": 10, "batch_size": 8, "torch_compile": False, "memory": False},
    }
    config = CompressConfig.model_validate(settings)
    manifest: dict[str, Any] = compress(subject, config, tmp_path / "artifact").manifest
    (record,) = manifest["passes"]
    assert record["config"] == config.passes[0].to_recipe()
    assert record["after"]
    for covered in record["coverage"].values():
        assert covered["changed_layers"] > 0 < covered["changed_parameters"] <= covered["parameters"]
        assert covered["changed_layers"] + len(covered["left"]) == covered["layers"]
        assert all(layer["reason"] for layer in covered["left"])
    for runtime in ("openvino", "onnxruntime"):
        answers = artifact.load(tmp_path / "artifact", runtime).predict(subject.splits.test.raw(np.arange(3)))
        assert len(answers) == 3
    if record["on"] == "torch":
        facts = [record[side]["torch"] for side in ("before", "after")]
        assert facts[0]["parameters"] + facts[0]["nonzero"] > facts[1]["parameters"] + facts[1]["nonzero"]
        return
    for runtime, after in record["after"].items():
        before = record["before"][runtime]
        assert (after["bytes"], after["gzip_bytes"]) != (before["bytes"], before["gzip_bytes"])
        assert after["drop"] < 0.2
