"""What is compressed, and how it is scored: always with the task's own metrics.

Shapes: N samples, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from fmdist.contracts import Draw, ExportSpec, Task
from fmdist.data.splits import DataSplits, Samples
from fmdist.errors import CompressionError, DataError
from fmdist.tasks import decoding
from fmdist.training.evaluation import as_arrays, evaluate
from fmdist.training.evaluation import score as score_rows

CALIBRATION = 300
"""Calibration samples, where the recipe doesn't say."""


@dataclass(frozen=True)
class Subject:
    """A trained model with all that scoring and describing it needs."""

    name: str
    task: Task
    """Its roles hold the trained weights, on the CPU."""
    export: ExportSpec
    """Of what the task serves."""
    splits: DataSplits
    recipe: Mapping[str, Any]
    """Resolved, plain JSON values."""
    source: str
    """The run that it comes from."""
    fingerprint: str
    """SHA-256 of the weights: an artifact belongs to one."""
    foreign: bool = False
    """Whether fmdist didn't train it, so that nothing but its scores says that it fits the data."""
    run: str = ""
    """Tells runs of one name apart: training on gives a run's artifact other weights, another run may not."""

    @property
    def seed(self) -> int:
        """The recipe's seed."""
        return int(self.recipe.get("seed", 0))


def torch_rows(task: Task, split: Samples) -> NDArray[np.float32]:
    """Return the original model's rows (N, S) over a split."""
    evaluated = evaluate(task, task.roles(), split, decoding.BATCH, torch.device("cpu"))
    assert evaluated is not None
    return evaluated[1]


def score(task: Task, rows: NDArray[np.float32], targets: NDArray[Any]) -> dict[str, float]:
    """Return the task's metrics of rows (N, S) against targets.

    Raises:
        CompressionError: if rows or a metric aren't finite.
    """
    finite = bool(np.isfinite(rows).all())
    values = score_rows(task, rows, targets) if finite else {}  # for nan some raise errors of their own
    if not finite or not all(map(math.isfinite, values.values())):
        raise CompressionError(
            field="compress",
            problem="the model's outputs or metrics are not finite",
            value=values,
            fix="check the training run before compressing it",
        )
    return values


def drop(task: Task, reference: float, value: float) -> float:
    """Return by how much ``value`` of the primary metric is worse than ``reference``; negative if better."""
    return reference - value if task.primary[1] == "max" else value - reference


def calibration_rows(targets: NDArray[Any], size: int, seed: int) -> NDArray[np.int64]:
    """Return positions of at most ``size`` samples, seeded; for classes evenly drawn from each.

    Args:
        targets: of the training split: int64 (N,) classes, or (N, K) of any kind.
        size: how many to draw.
        seed: keys the draw.
    """
    order = np.random.default_rng(seed).permutation(len(targets))
    if targets.ndim == 1:
        # The first sample of every class, then the second of every class, and so on.
        seen: dict[int, int] = {}
        rank = np.empty(len(order), np.int64)
        for position, row in enumerate(order):
            rank[position] = seen.setdefault(int(targets[row]), 0)
            seen[int(targets[row])] += 1
        order = order[np.argsort(rank, kind="stable")]
    return np.sort(order[:size]).astype(np.int64)


def calibration_size(available: int, asked: int | None) -> int:
    """Return how many samples calibrate a model.

    Args:
        available: samples of the training split.
        asked: by the recipe.

    Raises:
        DataError: if more are asked for than there are.
    """
    if asked is not None and asked > available:
        raise DataError(
            field="compress.calibration_samples",
            problem="the training split has fewer samples",
            value=asked,
            allowed=f"at most {available}, or null",
        )
    return min(CALIBRATION, available) if asked is None else asked


def batch_of(split: Samples, rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Return some samples as the rules take them."""
    return as_arrays(split.__getitems__(Draw(0, rows)))


def write_batch(splits: DataSplits, split: Samples, folder: Path, prefix: str) -> dict[str, Path]:
    """Write a whole split, as the rules take it, to ``.npy`` files; return the files by name."""
    size = len(split)
    parts = [np.arange(start, min(start + decoding.BATCH, size)) for start in range(0, size, decoding.BATCH)]
    shapes: dict[str, tuple[int, ...]] = {}
    spec = splits.spec
    inputs = [item.name for item in spec.inputs]
    ragged = spec.target.kind == "items" or any(None in item.shape for item in spec.inputs)
    for rows in parts if ragged else parts[:1]:
        for name, value in batch_of(split, rows).items():
            known = shapes.get(name, value.shape[1:])
            shapes[name] = tuple(map(max, known, value.shape[1:]))
    files = {name: folder / f"{prefix}.{name}.npy" for name in shapes}
    arrays: dict[str, Any] = {}
    for rows in parts:
        for name, value in batch_of(split, rows).items():
            if name not in arrays:
                # Token ids end in zeros; lists of items in -1, since 0 is an item.
                padding = -1 if spec.target.kind == "items" and name not in inputs else 0
                shape = (size, *shapes[name])
                arrays[name] = open_memmap(files[name], mode="w+", dtype=value.dtype, shape=shape)
                arrays[name][:] = padding
            at = slice(int(rows[0]), int(rows[-1]) + 1)
            arrays[name][(at, *map(slice, value.shape[1:]))] = value
    for array in arrays.values():
        array.flush()
    return files
