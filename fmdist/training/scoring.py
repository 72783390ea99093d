"""The final scores of a run: metrics, interval, baseline, outputs and examples of a split."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fmdist import storage
from fmdist.contracts import DataSpec, Task
from fmdist.data.loader import evaluation_loader
from fmdist.data.splits import Split
from fmdist.tasks.decoding import sigmoid, softmax
from fmdist.training.evaluation import ROWS, confidence_interval, evaluate, score

EXAMPLES = 24
"""Examples kept of each sort: the largest errors, and others spread over the rest."""


class NoModel:
    """Stands where a task wants a model: an artifact is scored without any model's code."""

    def build(self, spec: DataSpec, outputs: int) -> nn.Module:
        """Return a module that nobody calls."""
        return nn.Identity()


def score_split(
    task: Task, split: Split, name: str, train_targets: NDArray[Any], batch_size: int, seed: int
) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Return a split's scores as JSON, and the model's outputs (N, K) behind them."""
    evaluated = evaluate(task, task.roles(), split, batch_size, torch.device("cpu"))
    assert evaluated is not None
    return score_outputs(task, split, name, train_targets, evaluated[1], seed), evaluated[1]


def score_outputs(
    task: Task,
    split: Split,
    name: str,
    train_targets: NDArray[Any],
    outputs: NDArray[np.float32],
    seed: int,
) -> dict[str, Any]:
    """Return the scores of outputs (N, K), whoever computed them, with their interval and the baseline's."""
    primary, mode = task.primary
    return {
        "split": name,
        "size": len(split),
        "metrics": score(task, outputs, split.targets),
        "primary": primary,
        "mode": mode,
        "interval": confidence_interval(task, outputs, split.targets, seed),
        "baseline": score(task, task.baseline(train_targets, len(split)), split.targets),
        "target": {"kind": task.spec.target.kind, "names": list(task.spec.target.names)},
    }


def gather(
    split: Split, outputs_of: Callable[[dict[str, NDArray[Any]]], NDArray[np.float32]]
) -> NDArray[np.float32]:
    """Return the outputs (N, K) of a function of named, preprocessed inputs over a whole split."""
    parts = []
    for batch in evaluation_loader(split, ROWS):
        inputs = {name: value.numpy() for name, value in batch.items() if name not in ("target", "index")}
        parts.append(outputs_of(inputs))
    return np.concatenate(parts)


def write_scores(folder: Path, record: dict[str, Any], outputs: NDArray[np.float32], split: Split) -> None:
    """Write ``<split>.json``, ``<split>.npz`` and, for images, ``examples.npz``."""
    folder.mkdir(parents=True, exist_ok=True)
    index = np.arange(len(split))
    np.savez_compressed(folder / f"{record['split']}.npz", outputs=outputs, target=split.targets, index=index)
    rows = _example_rows(outputs, split.targets, record["target"]["kind"])
    raw = split.raw(rows)
    if raw.dtype == np.uint8 and raw.ndim == 4:
        np.savez_compressed(folder / "examples.npz", image=raw, index=rows)
    storage.write_json(folder / f"{record['split']}.json", record)


def _example_rows(outputs: NDArray[np.float32], targets: NDArray[Any], kind: str) -> NDArray[np.int64]:
    """Return the positions of the largest errors, and of as many spread evenly over the rest."""
    if kind == "class":
        error_N = 1 - softmax(outputs)[np.arange(len(targets)), targets]
    else:
        answers = sigmoid(outputs) if kind == "labels" else outputs
        error_N = np.abs(answers - targets).mean(axis=1)
    order = np.argsort(-error_N, kind="stable")
    rest = order[EXAMPLES:]
    spread = rest[np.linspace(0, len(rest) - 1, min(EXAMPLES, len(rest))).astype(int)]
    return np.concatenate([order[:EXAMPLES], spread]).astype(np.int64)
