"""What the processes of one training run tell each other: sums, agreements, rows."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from fmdist.background import running


class Group:
    """The processes that train one model together; alone, every answer is one's own.

    Args:
        rank: which of them this is, from 0.
        size: how many there are.
        device: where tensors must be for the process group to move them.
    """

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank = rank
        self.size = size
        self._device = device
        self.meetings = 0
        """How often this process has come to where it waits for the others; in the end the same on all."""
        self.alive = 0
        """Grows while this process works by itself."""

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Return each value summed over all processes, in float64; nan or inf anywhere is so everywhere."""
        if self.size == 1:
            return list(values)
        self.meetings += 1
        total = torch.tensor(values, dtype=torch.float64, device=self._device)
        dist.all_reduce(total)
        summed: list[float] = total.tolist()
        return summed

    def summing(self, values: Sequence[float | torch.Tensor]) -> Callable[[], list[float]]:
        """Begin what `sum` does and return what waits for it: it costs nothing while there is work to do.

        Scalars on the device may be among the values, which aren't waited for before.
        """
        if self.size == 1:
            return lambda: [float(value) for value in values]
        numbers = [torch.as_tensor(value, dtype=torch.float64, device=self._device) for value in values]
        total = torch.stack(numbers)
        work = dist.all_reduce(total, async_op=True)

        def wait() -> list[float]:
            self.meetings += 1
            work.wait()
            summed: list[float] = total.tolist()
            return summed

        return wait

    def follow(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite tensors with the first process's."""
        if self.size > 1:
            for tensor in tensors:
                self.meetings += 1
                dist.broadcast(tensor, src=0)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Be known to work, and not to hang, while entered: files and stores take their time."""
        if self.size == 1:
            yield
            return

        def beat(done: threading.Event) -> None:
            while not done.wait(1.0):
                self.alive += 1

        with running(beat, "busy"):
            yield

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank; they are pickled."""
        if self.size == 1:
            return [value]
        self.meetings += 1
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def share(self, value: Any) -> Any:
        """Return the first process's value; the others' is not used."""
        if self.size == 1:
            return value
        self.meetings += 1
        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]
