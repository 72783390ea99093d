"""Quantization-aware training in a compression: after pruning, and killed while it trains."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import onnx
import pytest
import yaml
from onnx import numpy_helper

from fmdist import storage
from tests.integration.command_line import succeed
from tests.integration.test_reduction import models

pytestmark = pytest.mark.slow

RECIPE = {
    "name": "aware",
    "seed": 0,
    "data": {"kind": "digits"},
    "model": {"kind": "cnn", "channels": [8, 16], "blocks": 1},
    "task": {"kind": "classification"},
    "train": {"epochs": 2, "lr": 5e-3, "threads": 1, "trackers": []},
    "compress": {
        "passes": [
            {"kind": "prune_weights", "sparsity": 0.5, "schedule": "one_shot", "finetune": {"epochs": 1}},
            {"kind": "quantize_aware", "finetune": {"epochs": 6, "lr": 1e-3, "distill": {}}},
        ],
        "max_drop": 0.5,
        "benchmark": {"samples": 10, "batch_size": 8, "max_seconds": 1},
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run and its artifact."""
    made = tmp_path_factory.mktemp("aware")
    (made / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    succeed(made, "train", "recipe.yaml")
    succeed(made, "compress", "runs/aware")
    return made


def kill_in_training(folder: Path, artifact: str) -> None:
    """Start a compression and kill it once the training with quantizers has saved an epoch."""
    words = [sys.executable, "-m", "fmdist", "compress", "runs/aware", "-o", artifact, "-q"]
    process = subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    stages = folder / artifact / "stages"
    deadline = time.monotonic() + 240
    while not list(stages.glob("*-quantize_aware/finetune/checkpoints/step-*")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not list(stages.glob("*-quantize_aware/done.json"))


@pytest.mark.timeout(600)
def test_killed_in_training_it_ends_with_the_same_files(folder: Path) -> None:
    kill_in_training(folder, "artifacts/killed")
    done = succeed(folder, "compress", "runs/aware", "-o", "artifacts/killed")
    assert "resum" in done.err
    assert models(folder / "artifacts/killed") == models(folder / "artifacts/aware")
    left = {path.name for path in (folder / "artifacts/killed/stages").rglob("*") if path.is_dir()}
    assert "finetune" not in left


def test_what_it_did_is_told(folder: Path) -> None:
    manifest = storage.verify(folder / "artifacts/aware")
    _, trained = manifest["passes"]
    assert (trained["kind"], trained["on"]) == ("quantize_aware", "exported")
    assert set(trained["after"]) == {"openvino", "onnxruntime"}
    for found in manifest["models"].values():
        assert list(found) == ["fp32", "reduced", "int8"]
    executed = [row["executed"] for row in manifest["results"] if row["variant"] == "int8"]
    assert all(row["int8"] >= 2 for row in executed)
    assert "Quantize aware" in (folder / "artifacts/aware/report.html").read_text(encoding="utf-8")


def test_zeros_of_the_pruning_are_zeros_of_the_file(folder: Path) -> None:
    manifest = storage.verify(folder / "artifacts/aware")
    file = folder / "artifacts/aware" / manifest["models"]["onnxruntime"]["int8"]["file"]
    arrays = [numpy_helper.to_array(value) for value in onnx.load(str(file)).graph.initializer]
    weights = [value for value in arrays if value.ndim >= 2]
    after = manifest["passes"][0]["after"]["torch"]
    zeros = sum(int((value == 0).sum()) for value in weights)
    assert len(weights) == 3
    assert zeros >= after["parameters"] - after["nonzero"] > 0.4 * sum(value.size for value in weights)
