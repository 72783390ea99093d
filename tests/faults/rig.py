"""Small recipes, and what two runs are compared by."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fmdist import stages, storage
from fmdist.errors import Interrupted
from fmdist.training.checkpoint import CheckpointStore, Saved
from fmdist.training.phase import PhaseTrainer
from fmdist.training.snapshot import Trainables, snapshot


def save(
    store: CheckpointStore, step: int, trainables: Trainables, state: Mapping[str, Any], score: float | None
) -> None:
    """Commit a checkpoint at once."""
    copied = snapshot(trainables)
    assert copied is not None
    store.commit(step, copied, state, score)


def load(store: CheckpointStore, saved: Saved, trainables: Trainables) -> None:
    """Restore all of a checkpoint."""
    store.load_roles(saved, trainables.roles)
    store.load_progress(saved, trainables)


TIMES = ("seconds", "samples_per_s")
"""What no two runs have in common."""


def small_recipe(
    train: Mapping[str, Any] | None = None,
    task: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    data: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A digits MLP with ten steps an epoch."""
    return {
        "name": "faults",
        "seed": 3,
        "data": {"kind": "digits", **(data or {})},
        "model": dict(model or {"kind": "mlp", "hidden": [16], "dropout": 0.1}),
        "task": {"kind": "classification", **(task or {})},
        "train": {
            "epochs": 2,
            "batch_size": 128,
            "lr": 0.01,
            "log_every_steps": 3,
            "threads": 1,
            "trackers": [],
            **(train or {}),
        },
    }


def records(run: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl without times and rates."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in TIMES} for line in lines]


def steps(run: Path) -> list[Path]:
    """The committed checkpoints, oldest first."""
    return sorted(path for path in (run / "checkpoints").glob("step-*") if not path.name.endswith(".corrupt"))


def newest(run: Path) -> Path:
    return steps(run)[-1]


def tensors(checkpoint: Path) -> dict[str, str]:
    """The SHA-256 of each file of weights and optimizer tensors, once they are verified."""
    files = storage.verify(checkpoint)["files"]
    return {name: entry["sha256"] for name, entry in files.items() if name.endswith(".safetensors")}


def outcome(run: Path) -> dict[str, Any]:
    """All of a finished run that an interruption must not change."""
    state = storage.read_json(newest(run) / "state.json")
    for name in (*TIMES, "recorded_seconds", "metrics_bytes"):
        state["progress"].pop(name, None)
    for name in ("recipe", "versions"):
        state.pop(name)
    record = storage.read_json(run / "run.json")
    return {
        "tensors": tensors(newest(run)),
        "state": state,
        "metrics": records(run),
        "test": storage.read_json(run / "evaluation" / "test.json"),
        "run": {name: record[name] for name in ("status", "step", "epoch", "primary", "best_step")},
    }


def signal_at(patch: pytest.MonkeyPatch, step: int, *numbers: int) -> None:
    """Let this process get signals at the end of its n-th optimizer step, before it is saved."""
    made = 0
    original = PhaseTrainer.step

    def counted(*arguments: Any) -> None:
        nonlocal made
        original(*arguments)
        made += 1
        if made == step:
            for number in numbers:
                signal.raise_signal(number)  # unlike os.kill, never two in one

    patch.setattr(PhaseTrainer, "step", counted)


def train_until(step: int, number: int, recipe: Mapping[str, Any], folder: Path) -> Interrupted:
    """Train, get signal ``number`` in the n-th step of this start, and return the interruption."""
    with pytest.MonkeyPatch.context() as patch:
        signal_at(patch, step, number)
        with pytest.raises(Interrupted) as caught:
            stages.train(recipe, output=folder)
    return caught.value
