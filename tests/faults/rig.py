"""Small recipes, and what two runs are compared by."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fmdist import storage

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
    return [
        {name: value for name, value in json.loads(line).items() if name not in TIMES} for line in lines
    ]


def steps(run: Path) -> list[Path]:
    """The committed checkpoints, oldest first."""
    return sorted(
        path for path in (run / "checkpoints").glob("step-*") if not path.name.endswith(".corrupt")
    )


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
        "checkpoints": [path.name for path in steps(run)],
    }
