"""Two workers train as one does: the same batches, losses, weights and scores."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fmdist import stages
from fmdist.orchestration import overseer, workers
from tests.contract import language_samples
from tests.distributed.rig import records, train_in_processes

pytestmark = pytest.mark.slow

TOLERANCE = 5e-4
"""Relative: two workers add the same numbers in another order."""

TRAIN = {"epochs": 2, "batch_size": 64, "lr": 2e-3, "threads": 1, "log_every_steps": 3, "trackers": []}
PIXELS = {"kind": "digits", "normalize": False}

FAMILIES: dict[str, dict[str, Any]] = {
    "cnn": {
        "data": {"kind": "digits", "augment": {"crop_padding": 1}},
        "model": {"kind": "cnn", "channels": [8, 16], "blocks": 1, "norm": "group", "dropout": 0.3},
        "task": {"kind": "classification"},
        "train": {**TRAIN, "clip_norm": 1.0, "ema": {"decay": 0.9}},
    },
    "gpt": {
        "model": {"kind": "gpt", "width": 16, "layers": 2, "heads": 2, "dropout": 0.2},
        "task": {"kind": "language_modeling"},
        "train": {**TRAIN, "batch_size": 16, "accumulate": 2},
    },
    "vae": {
        "data": PIXELS,
        "model": {"kind": "vae", "hidden": [32], "latent": 4},
        "task": {"kind": "variational", "likelihood": "bernoulli"},
        "train": TRAIN,
    },
    "gan": {
        "data": PIXELS,
        "model": {"kind": "gan", "channels": [8, 8], "latent": 4, "norm": "group"},
        "task": {"kind": "adversarial", "shift": 1},
        "train": TRAIN,
    },
}


@pytest.fixture(autouse=True)
def processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overseer, "ready", lambda scaling, address: contextlib.nullcontext())
    monkeypatch.setattr(workers, "train_on_workers", train_in_processes)


def recipe(family: str, folder: Path, size: int) -> dict[str, Any]:
    values = {"name": family, "seed": 3, "scaling": {"workers": size}, **FAMILIES[family]}
    if family == "gpt":
        values["data"] = {"kind": "text_file", **language_samples.text_file(folder / "text")}
    return values


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a run's last checkpoint, by file and name."""
    last = sorted((folder / "checkpoints").iterdir())[-1]
    return {
        f"{file.name} {name}": value
        for file in sorted(last.glob("*.safetensors"))
        for name, value in load_file(str(file)).items()
    }


def close(found: Any, wanted: Any) -> None:
    if isinstance(wanted, float):
        assert found == pytest.approx(wanted, rel=TOLERANCE, abs=1e-6)
    else:
        assert found == wanted


@pytest.mark.parametrize("strategy", ["ddp", "zero1", "zero2", "zero3", "fsdp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_workers_train_as_one(family: str, strategy: str, tmp_path: Path) -> None:
    runs = [tmp_path / str(size) for size in (1, 2)]
    recipes = [recipe(family, tmp_path, size) for size in (1, 2)]
    recipes[1]["scaling"]["strategy"] = strategy
    if strategy in ("zero3", "fsdp"):
        for values in recipes:
            values["train"] = {key: value for key, value in values["train"].items() if key != "ema"}
    scores = [stages.train(values, output=run) for values, run in zip(recipes, runs, strict=True)]
    one, two = (records(run) for run in runs)
    assert len(one) == len(two) > 4
    for wanted, found in zip(one, two, strict=True):
        assert wanted.keys() == found.keys()
        for name in wanted:
            close(found[name], wanted[name])
    # Adam divides by the gradient's size, so that a tiny difference of tiny gradients shows in full.
    before, after = (weights(run) for run in runs)
    assert before.keys() == after.keys()
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-3, atol=2e-4)
    for name, value in scores[0].metrics.items():
        assert scores[1].metrics[name] == pytest.approx(value, rel=1e-2, abs=0.01)
