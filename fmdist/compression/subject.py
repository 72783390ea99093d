"""What is compressed, and how it is scored: always with the task's own metrics.

Shapes: N samples, K outputs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from fmdist.contracts import Draw, ExportSpec, Task
from fmdist.data.splits import DataSplits, Split
from fmdist.errors import CapabilityError, CompressionError

EXPORT = "model"
"""The export whose outputs are the task's outputs."""

BATCH = 256
"""Samples per forward when a split is scored; also what a runtime sees at a time."""


@dataclass(frozen=True)
class Subject:
    """A trained model with all that scoring and describing it needs."""

    name: str
    task: Task
    """Its roles hold the trained weights, on the CPU."""
    exports: Mapping[str, ExportSpec]
    splits: DataSplits
    recipe: Mapping[str, Any]
    """Resolved, plain JSON values."""
    source: str
    """The run that it comes from."""
    fingerprint: str
    """SHA-256 of the weights: an artifact belongs to one."""
    run: str = ""
    """Tells runs of one name apart: training on gives a run's artifact other weights, another run may not."""

    @property
    def export(self) -> ExportSpec:
        """Return the one export that is compressed and scored.

        Raises:
            CapabilityError: if the model has another number of exports, or inputs that the data doesn't give.
        """
        if set(self.exports) != {EXPORT}:
            raise CapabilityError(
                field="compress",
                problem="only models with one export, called 'model', can be scored",
                value=list(self.exports),
            )
        spec = self.exports[EXPORT]
        given = [item.name for item in self.splits.spec.inputs]
        if list(spec.input_names) != given:
            raise CapabilityError(
                field="compress",
                problem="the export takes other inputs than the data gives",
                value=list(spec.input_names),
                allowed=", ".join(given),
            )
        return spec

    @property
    def seed(self) -> int:
        """The recipe's seed."""
        return int(self.recipe.get("seed", 0))


def torch_outputs(task: Task, split: Split) -> NDArray[np.float32]:
    """Return the original model's outputs (N, K) over a split, in evaluation mode."""
    roles = task.roles()
    for module in roles.values():
        module.eval()
    with torch.no_grad():
        parts = [task.outputs(roles, split.__getitems__(Draw(0, rows))) for rows in _batches(len(split))]
    return torch.cat(parts).numpy()


def score(task: Task, outputs: NDArray[np.float32], targets: NDArray[Any]) -> dict[str, float]:
    """Return the task's metrics of outputs (N, K) against targets.

    Raises:
        CompressionError: if outputs or a metric aren't finite.
    """
    metrics = task.metrics()
    metrics.update(torch.from_numpy(np.ascontiguousarray(outputs)), torch.from_numpy(targets))
    values = {name: float(value) for name, value in metrics.compute().items()}
    if not np.isfinite(outputs).all() or not all(map(math.isfinite, values.values())):
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


def inputs_of(split: Split, names: Sequence[str], rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
    """Return the preprocessed inputs of some samples, by name, batch first."""
    batch = split.__getitems__(Draw(0, rows))
    return {name: batch[name].numpy() for name in names}


def write_inputs(split: Split, names: Sequence[str], folder: Path, prefix: str) -> dict[str, Path]:
    """Write a split's preprocessed inputs to ``.npy`` files, batch by batch; return the files by name."""
    files = {name: folder / f"{prefix}.{name}.npy" for name in names}
    arrays: dict[str, Any] = {}
    for rows in _batches(len(split)):
        for name, value in inputs_of(split, names, rows).items():
            if name not in arrays:
                shape = (len(split), *value.shape[1:])
                arrays[name] = open_memmap(files[name], mode="w+", dtype=value.dtype, shape=shape)
            arrays[name][rows] = value
    for array in arrays.values():
        array.flush()
    return files


def _batches(size: int) -> list[NDArray[np.int64]]:
    return [np.arange(start, min(start + BATCH, size)) for start in range(0, size, BATCH)]
