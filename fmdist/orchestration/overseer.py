"""How many workers there can be: machines come and go while a run trains."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from fmdist import storage
from fmdist.orchestration.cluster import cluster, machines, room, wait_for
from fmdist.training.scaling import ScalingConfig

LOOK_SECONDS, STEADY_LOOKS = 1.0, 3
"""How often the machines are looked at, and for how many looks a change must last."""


def each(scaling: ScalingConfig) -> dict[str, float]:
    """Return what Ray sets aside for a worker: resource (``CPU``, ``GPU``) -> how much."""
    gpus = scaling.gpus_per_worker
    return {"CPU": scaling.cpus_per_worker} | ({"GPU": gpus} if gpus else {})


def possible(scaling: ScalingConfig, sizes: Sequence[int]) -> int:
    """Return the largest of the numbers of workers for which there is room now; 0 without any."""
    found = room(machines(), each(scaling), scaling.placement)
    return max((size for size in sizes if size <= found), default=0)


@contextmanager
def ready(scaling: ScalingConfig, address: str | None) -> Iterator[None]:
    """Be connected to a cluster that has what the workers need, while entered.

    Args:
        scaling: the recipe's section.
        address: of the cluster; see `fmdist.orchestration.cluster.cluster`.

    Raises:
        CapabilityError: if the cluster is too small.
        UsageError: if no cluster answers.
    """
    with cluster(address):
        wait_for(each(scaling), scaling.least, scaling.placement, scaling.wait_seconds, threading.Event())
        yield


class Overseer:
    """Asks the workers to save and end when there is room for more, or machines will leave.

    Args:
        scaling: the recipe's section.
        sizes: numbers of workers that will do.
        size: how many there are.
        stop: the file by which workers are asked to.
    """

    def __init__(self, scaling: ScalingConfig, sizes: Sequence[int], size: int, stop: Path) -> None:
        self.reason = ""
        """Why they were asked to; empty if they weren't."""
        self._scaling = scaling
        self._sizes = sizes
        self._stop = stop
        self._size = size

    def watch(self, done: threading.Event) -> None:
        """Look at the machines until ``done`` is set or the workers were asked to end."""
        seen = 0
        while not done.wait(LOOK_SECONDS):
            now = possible(self._scaling, self._sizes)
            seen = seen + 1 if now != self._size else 0
            if seen >= STEADY_LOOKS:
                more = now > self._size
                self.reason = "there is room for more workers" if more else "machines are about to leave"
                storage.write_text(self._stop, str(int(signal.SIGTERM)))
                return
