"""DataLoaders over a batch plan: one for all that remains of a training run, one for an evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from fmdist.contracts import Batch, Dataset, Draw
from fmdist.data.plan import BatchPlan
from fmdist.errors import DataError


@dataclass(frozen=True)
class _TrainingDraws:
    """This rank's microbatches, epoch after epoch, from ``start`` on."""

    plan: BatchPlan
    start: tuple[int, int]
    epochs: int
    rank: int
    world_size: int
    accumulate: int

    def __iter__(self) -> Iterator[Draw]:
        first_epoch, first_step = self.start
        for epoch in range(first_epoch, self.epochs):
            for step in range(first_step if epoch == first_epoch else 0, self.plan.steps_per_epoch):
                parts = self.plan.parts(self.plan.indices(epoch, step), self.world_size * self.accumulate)
                first = self.rank * self.accumulate
                for part in parts[first : first + self.accumulate]:
                    yield Draw(epoch, part)

    def __len__(self) -> int:
        epoch, step = self.start
        steps = (self.epochs - epoch) * self.plan.steps_per_epoch - step
        return max(steps, 0) * self.accumulate


@dataclass(frozen=True)
class _EvaluationDraws:
    """Every sample of this rank's stretch once, in order."""

    start: int
    end: int
    batch_size: int

    def __iter__(self) -> Iterator[Draw]:
        for start in range(self.start, self.end, self.batch_size):
            yield Draw(0, np.arange(start, min(start + self.batch_size, self.end)))

    def __len__(self) -> int:
        return -(-(self.end - self.start) // self.batch_size)


def training_loader(
    dataset: Dataset,
    plan: BatchPlan,
    start: tuple[int, int],
    epochs: int,
    rank: int = 0,
    world_size: int = 1,
    accumulate: int = 1,
    workers: int = 0,
) -> DataLoader[Batch]:
    """Return one loader over all that remains of a run, so that the end of an epoch costs nothing.

    It yields ``accumulate`` microbatches for every step of the plan. Iterating again begins at ``start``.

    Args:
        dataset: the training split.
        plan: the global batches.
        start: (epoch, step) of the first batch.
        epochs: the epoch at which to end; not more than ``start[0]`` yields nothing.
        rank: which worker of ``world_size`` this is.
        world_size: how many workers share a global batch.
        accumulate: microbatches per step and worker.
        workers: processes that prepare batches; 0 prepares them in this one.

    Raises:
        DataError: if the workers and microbatches don't divide the global batch, or an epoch's last batch has
            too few samples to give each of them one.
    """
    check_division(plan, world_size, accumulate)
    return _loader(dataset, _TrainingDraws(plan, start, epochs, rank, world_size, accumulate), workers)


def evaluation_loader(
    dataset: Dataset, batch_size: int, rank: int = 0, world_size: int = 1
) -> DataLoader[Batch]:
    """Return a loader that yields every sample of this rank's stretch of the split once, in order."""
    start, end = (len(dataset) * number // world_size for number in (rank, rank + 1))
    return _loader(dataset, _EvaluationDraws(start, end, batch_size), 0)


def possible_workers(plan: BatchPlan, accumulate: int, least: int, most: int | None) -> list[int]:
    """Return the numbers of workers in [``least``, ``most``] that can share every batch, rising.

    Raises:
        DataError: if there is none.
    """
    found = []
    for size in range(least, (most or plan.global_batch) + 1):
        with suppress(DataError):
            check_division(plan, size, accumulate)
            found.append(size)
    if not found:
        check_division(plan, least, accumulate)
    return found


def check_division(plan: BatchPlan, world_size: int, accumulate: int) -> None:
    """Raise `DataError` if workers and microbatches can't share every batch; see `training_loader`."""
    parts = world_size * accumulate
    if plan.global_batch % parts:
        raise DataError(
            field="train.batch_size",
            problem=f"{world_size} worker(s) x {accumulate} microbatch(es) don't divide the global batch",
            value=plan.global_batch,
            allowed=f"a multiple of {parts}",
        )
    last = plan.size % plan.global_batch
    if 0 < last < parts and not plan.drop_last:
        raise DataError(
            field="train.batch_size",
            problem=f"an epoch's last batch has {last} sample(s), too few for {world_size} worker(s) x "
            f"{accumulate} microbatch(es)",
            value=plan.global_batch,
            fix="drop the last batch, or choose another batch size",
        )


def _loader(dataset: Dataset, draws: Sized, workers: int) -> DataLoader[Batch]:
    source: Any = dataset  # DataLoader's type asks for __getitem__, its code prefers __getitems__
    batches: Any = draws
    return DataLoader(
        source,
        batch_sampler=batches,
        collate_fn=_as_is,
        num_workers=workers,
        pin_memory=torch.cuda.is_available(),
        # a generator of its own: otherwise every iteration would draw from torch's global one
        generator=torch.Generator(),
    )


def _as_is(batch: Any) -> Any:
    return batch
