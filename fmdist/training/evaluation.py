"""Scores of a task's roles on a split, with a baseline and a confidence interval beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy, MultilabelExactMatch

from fmdist.contracts import Dataset, Roles, Task
from fmdist.data.loader import evaluation_loader
from fmdist.training.signals import StopRequest

ROWS = 256
"""Rows per forward when predicting."""

RESAMPLES = 200
"""Bootstrap resamples of a confidence interval."""


def evaluate(
    task: Task,
    roles: Roles,
    dataset: Dataset,
    batch_size: int,
    device: torch.device,
    stop: StopRequest | None = None,
) -> tuple[dict[str, float], NDArray[np.float32]] | None:
    """Return the metrics on a split and the outputs (N, K) behind them; None if a signal came.

    The modules are in evaluation mode meanwhile, and back in their mode afterwards.
    """
    metrics = task.metrics().to(device)
    outputs: list[Tensor] = []
    modes = {name: module.training for name, module in roles.items()}
    try:
        for module in roles.values():
            module.eval()
        with torch.inference_mode():
            for batch in evaluation_loader(dataset, batch_size):
                if stop is not None and stop.signal is not None:
                    return None
                placed = {
                    name: value.to(device) if isinstance(value, Tensor) else value
                    for name, value in batch.items()
                }
                outputs_BK = task.outputs(roles, placed)
                metrics.update(outputs_BK, placed["target"])
                outputs.append(outputs_BK.float().cpu())
    finally:
        _restore(roles, modes)
    return as_floats(metrics.compute()), torch.cat(outputs).numpy()


def run_model(task: Task, name: str, inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the outputs (N, K) for preprocessed rows of the input called ``name``, in evaluation mode."""
    with torch.inference_mode():
        parts = [
            task.outputs(task.roles(), {name: torch.from_numpy(inputs[start : start + ROWS])})
            for start in range(0, len(inputs), ROWS)
        ]
    return torch.cat(parts).numpy()


def score(task: Task, outputs: NDArray[np.float32], target: NDArray[Any]) -> dict[str, float]:
    """Return the task's metrics of outputs (N, K) against targets."""
    metrics = task.metrics()
    metrics.update(torch.from_numpy(outputs), torch.from_numpy(target))
    return as_floats(metrics.compute())


def confidence_interval(
    task: Task, outputs: NDArray[np.float32], target: NDArray[Any], seed: int
) -> tuple[float, float]:
    """Return a 95% interval of the primary metric over samples.

    Wilson's (1927) for a share of samples, which stays honest where all are right; else the percentile
    bootstrap (Efron 1979).
    """
    metric = task.metrics()[task.primary[0]]
    if isinstance(metric, MulticlassAccuracy | MultilabelExactMatch):
        metric.update(torch.from_numpy(outputs), torch.from_numpy(target))
        return wilson_interval(float(metric.compute()), len(target))
    random = np.random.default_rng(seed)
    draws = (random.integers(len(target), size=len(target)) for _ in range(RESAMPLES))
    scores = []
    for rows in draws:
        metric.reset()
        metric.update(torch.from_numpy(outputs[rows]), torch.from_numpy(target[rows]))
        scores.append(float(metric.compute()))
    low, high = np.nanpercentile(scores, [2.5, 97.5])
    return float(low), float(high)


def wilson_interval(share: float, size: int) -> tuple[float, float]:
    """Return Wilson's 95% score interval of a share in [0, 1] seen in ``size`` samples.

    >>> [round(bound, 4) for bound in wilson_interval(1.0, 269)]
    [0.9859, 1.0]
    """
    z = 1.959964
    centre = (share + z * z / (2 * size)) / (1 + z * z / size)
    half = z / (1 + z * z / size) * math.sqrt(share * (1 - share) / size + z * z / (4 * size * size))
    return 0.0 if share == 0 else centre - half, 1.0 if share == 1 else centre + half


def as_floats(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Return metric values as plain floats."""
    return {name: float(value) for name, value in values.items()}


def _restore(roles: Mapping[str, nn.Module], modes: Mapping[str, bool]) -> None:
    for name, module in roles.items():
        module.train(modes[name])
