"""The microbatches of each step, and what all workers count in them."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from itertools import islice

from fmdist.contracts import Batch, Task
from fmdist.training.engine import Engine


class Feed:
    """Gives the steps their microbatches.

    A loss is divided by what all workers count in a step, which must be known before its first backward. So
    that nobody waits for that number, several workers fetch a step's batches one step ahead, and their counts
    travel with the loss of the step before; so does a signal that one of them has received.

    Args:
        batches: this worker's, of all that remains of the run.
        accumulate: microbatches of a step.
        task: counts.
        engine: of this process.
    """

    def __init__(self, batches: Iterator[Batch], accumulate: int, task: Task, engine: Engine) -> None:
        self.total = 0.0
        """What all workers count in the window that was taken last."""
        self.beside: list[float] = []
        """What is to be summed over all workers in this step; `hear` takes the sums."""
        self._batches = batches
        self._accumulate = accumulate
        self._task = task
        self._engine = engine
        self._coming: list[Batch] | None = None
        self._coming_total = 0.0
        self._asked: int | None = None

    def window(self, asked: int | None) -> list[Batch]:
        """Return the next step's microbatches; ``asked`` is a signal that this process has received."""
        group = self._engine.group
        if group.size == 1:
            window = self._fetch()
            self.total = self._count(window)
            return window
        if self._coming is None:
            self._coming = self._fetch()
            [self._coming_total] = group.sum([self._count(self._coming)])
        window, self._coming = self._coming, self._fetch()
        self.total = self._coming_total
        self._asked = asked
        self.beside = [self._count(self._coming), float(asked or 0)]
        return window

    def hear(self, heard: Sequence[float] | None) -> int | None:
        """Take the sums over ``beside``, made here if no phase was due; return a signal if anyone has one."""
        self._coming_total, signals = self._engine.group.sum(self.beside) if heard is None else heard
        return (self._asked or int(signal.SIGTERM)) if signals else None

    def _fetch(self) -> list[Batch]:
        return [self._engine.place(batch) for batch in islice(self._batches, self._accumulate)]

    def _count(self, window: Sequence[Batch]) -> float:
        return sum([self._task.count(batch) for batch in window])
