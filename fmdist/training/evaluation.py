"""Scores of a task's roles on a split, with a baseline and a confidence interval beside them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fmdist.contracts import Batch, Dataset, Roles, Task
from fmdist.data.loader import evaluation_loader
from fmdist.metrics import MulticlassAccuracy, MultilabelExactMatch
from fmdist.tasks import decoding
from fmdist.tasks.decoding.run import Arrays, Run
from fmdist.training.group import Group
from fmdist.training.signals import StopRequest

RESAMPLES = 200
"""Bootstrap resamples of a confidence interval."""


def evaluate(
    task: Task,
    roles: Roles,
    dataset: Dataset,
    batch_size: int,
    device: torch.device,
    stop: StopRequest | None = None,
    group: Group | None = None,
) -> tuple[dict[str, float], NDArray[np.float32]] | None:
    """Return the metrics on a split and the rows (N, S) behind them; None if a signal came.

    The modules are in evaluation mode meanwhile, and back in their mode afterwards. Each process of ``group``
    runs its part of the split, and all have all rows afterwards; a signal must wait then.
    """
    group = group or Group(0, 1, device)
    rule = task.decoding()
    rows: list[NDArray[np.float32]] = []
    modes = {name: module.training for name, module in roles.items()}
    try:
        for module in roles.values():
            module.eval()
        run = runner(task, roles, device)
        for batch in evaluation_loader(dataset, batch_size, group.rank, group.size):
            if stop is not None and stop.signal is not None and group.size == 1:
                return None
            group.alive += 1
            rows.append(decoding.rows(rule, run, as_arrays(batch), batch_size))
    finally:
        _restore(roles, modes)
    all_rows = np.concatenate([part for parts in group.gather(rows) for part in parts])
    return score(task, all_rows, dataset.targets), all_rows


def runner(task: Task, roles: Roles, device: torch.device) -> Run:
    """Return a function that runs what the task serves, in torch on ``device``, without gradients."""
    module = task.served(roles)
    names = [item.name for item in task.inputs]

    def run(inputs: Arrays) -> NDArray[np.float32]:
        with torch.inference_mode():
            outputs: Tensor = module(*[torch.from_numpy(inputs[name]).to(device) for name in names])
        return np.asarray(outputs.float().cpu().numpy())

    return run


def as_arrays(batch: Batch) -> dict[str, NDArray[Any]]:
    """Return a batch's tensors for the rules, which know no torch and no lists."""
    return {name: value.numpy() for name, value in batch.items() if isinstance(value, Tensor)}


def score(task: Task, rows: NDArray[np.float32], target: NDArray[Any]) -> dict[str, float]:
    """Return the task's metrics of rows (N, S) against targets."""
    metrics = task.metrics()
    metrics.update(torch.from_numpy(np.ascontiguousarray(rows)), torch.from_numpy(target))
    return as_floats(metrics.compute())


def confidence_interval(
    task: Task, rows: NDArray[np.float32], target: NDArray[Any], seed: int
) -> tuple[float, float] | None:
    """Return a 95% interval of the primary metric over samples, or None where resampling says nothing of it.

    Wilson's (1927) for a share of samples, which stays honest where all are right; else the percentile
    bootstrap (Efron 1979), unless the metric states ``bootstraps`` false.
    """
    metric = task.metrics()[task.primary[0]]
    if not getattr(metric, "bootstraps", True):
        return None
    if isinstance(metric, MulticlassAccuracy | MultilabelExactMatch):
        metric.update(torch.from_numpy(rows), torch.from_numpy(target))
        return wilson_interval(float(metric.compute()), len(target))
    random = np.random.default_rng(seed)
    draws = (random.integers(len(target), size=len(target)) for _ in range(RESAMPLES))
    scores = []
    for chosen in draws:
        metric.reset()
        metric.update(torch.from_numpy(rows[chosen]), torch.from_numpy(target[chosen]))
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
