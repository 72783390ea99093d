"""The workers of a training run: Ray Train starts them, and starts them again where some were lost."""

from __future__ import annotations

import logging
import os
import pickle
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import ray.train
import torch.distributed as dist
from ray.train.torch import TorchConfig, TorchTrainer

from fmdist import storage
from fmdist.contracts import Context
from fmdist.errors import FmdistError, Interrupted, TrainingError
from fmdist.orchestration.cluster import cluster, room, wait_for_room
from fmdist.training.scaling import ScalingConfig
from fmdist.training.signals import StopRequest

Work = Callable[[Context], None]
"""What every worker does; it is pickled."""

STOP = ".stop"
"""File in a run's folder that holds the number of a signal: the workers save and end."""

RAISED = ".error"
"""Ends the name of a file by which a worker hands over what it raised."""

HANGING = ".hanging"
"""Ends the name of a file in which a worker names one for which it waited too long."""

LOOK_SECONDS, STEADY_LOOKS = 1.0, 3
"""How often the machines are looked at, and for how many looks a change must last."""

LONGEST_WAIT = 60.0
"""Seconds between two attempts, at most."""

logger = logging.getLogger(__name__)


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
        wait_for_room(_each(scaling), scaling.placement, scaling.least, scaling.wait_seconds)
        yield


def train_on_workers(work: Work, scaling: ScalingConfig, folder: Path, sizes: Sequence[int]) -> None:
    """Let all workers do ``work`` together, and again after one was lost, until it is done; see `ready`.

    SIGTERM and SIGINT are passed on: the workers save at the end of a step, and `Interrupted` is raised here.

    Args:
        work: is given its `Context`; it goes on from the newest checkpoint by itself.
        scaling: the recipe's section.
        folder: of the run, which all machines must share.
        sizes: numbers of workers that can share the batches, rising.

    Raises:
        FmdistError: what a worker raised, as it was.
        TrainingError: if workers were lost more often than ``scaling.max_failures``.
        CapabilityError: if the cluster has lost so many machines that there is no room.
    """
    stop, come = folder / STOP, threading.Event()

    def pass_on(number: int) -> None:
        storage.write_text(stop, str(number))
        come.set()

    stop.unlink(missing_ok=True)
    with StopRequest(pass_on) as request:
        try:
            _attempts(work, scaling, _Run(folder, stop, tuple(sizes)), request, come)
        finally:
            stop.unlink(missing_ok=True)


@dataclass(frozen=True)
class _Run:
    """What all attempts at a run have in common."""

    folder: Path
    stop: Path
    sizes: tuple[int, ...]


def _attempts(
    work: Work, scaling: ScalingConfig, run: _Run, request: StopRequest, come: threading.Event
) -> None:
    lost = 0
    while True:
        found = wait_for_room(_each(scaling), scaling.placement, run.sizes[0], scaling.wait_seconds)
        size = _largest(run.sizes, found)
        run.stop.unlink(missing_ok=True)  # what the last overseer asked for
        if (number := request.signal) is not None:
            raise Interrupted(number, "the newest checkpoint is kept; the same command resumes")
        with _Overseer(scaling, run, size) as overseer:
            failure = _attempt(work, scaling, size, run)
        if failure is None:
            return
        if request.signal is not None and not isinstance(failure, FmdistError):
            raise Interrupted(request.signal, "the newest checkpoint is kept; the same command resumes")
        if overseer.reason and request.signal is None and isinstance(failure, Interrupted):
            logger.warning("%s: saved, going on with as many workers as there is room for", overseer.reason)
            continue
        if isinstance(failure, FmdistError):
            raise failure
        lost += 1
        if lost > scaling.max_failures:
            raise TrainingError(
                problem=f"a worker was lost {lost} times ({failure})",
                fix="the same command goes on from the newest checkpoint; scaling.max_failures allows more",
            )
        seconds = min(scaling.backoff_seconds * 2 ** (lost - 1), LONGEST_WAIT)
        logger.warning("%s. Going on from the newest checkpoint in %.3g s", failure, seconds)
        come.wait(seconds)


def _each(scaling: ScalingConfig) -> dict[str, float]:
    """Return what a worker needs."""
    gpus = scaling.gpus_per_worker
    return {"CPU": scaling.cpus_per_worker} | ({"GPU": gpus} if gpus else {})


def _largest(sizes: Sequence[int], found: int) -> int:
    """Return the largest number of workers for which there is room; 0 without any."""
    return max((size for size in sizes if size <= found), default=0)


class _Overseer:
    """While entered, asks the workers to save and end when there is room for more, or machines will leave."""

    def __init__(self, scaling: ScalingConfig, run: _Run, size: int) -> None:
        self.reason = ""
        """Why they were asked to; empty if they weren't."""
        self._scaling = scaling
        self._run = run
        self._size = size
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="overseer", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        seen = 0
        while not self._done.wait(LOOK_SECONDS):
            possible = _largest(self._run.sizes, room(_each(self._scaling), self._scaling.placement))
            seen = seen + 1 if possible != self._size else 0
            if seen >= STEADY_LOOKS:
                more = possible > self._size
                self.reason = "there is room for more workers" if more else "machines are about to leave"
                storage.write_text(self._run.stop, str(int(signal.SIGTERM)))
                return


def _attempt(work: Work, scaling: ScalingConfig, size: int, run: _Run) -> Exception | None:
    """Return None once the work is done, or what ended it."""
    gpus = scaling.gpus_per_worker
    folder = run.folder
    # Ray's own records of this attempt, where all machines find them; the run's checkpoints are fmdist's.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".ray-", suffix=".tmp") as records:
        trainer = TorchTrainer(
            partial(_worker, work, run.stop, Path(records), "auto" if gpus else "cpu"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=size,
                use_gpu=bool(gpus),
                resources_per_worker=_each(scaling),
                placement_strategy=scaling.placement.upper(),
            ),
            run_config=ray.train.RunConfig(
                name=f"{folder.name}-{time.time_ns()}",
                storage_path=records,
                failure_config=ray.train.FailureConfig(max_failures=0),
            ),
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        )
        ended: Exception | None = None
        try:
            trainer.fit()
        except ray.train.TrainingFailedError as error:
            ended = _lost(error)
        if hanging := sorted(Path(records).glob(f"*{HANGING}")):
            ended = RuntimeError(hanging[0].read_text(encoding="utf-8"))
        # The folder is this user's alone, so what lies there was written by the workers.
        raised = sorted(Path(records).glob(f"*{RAISED}"))
        return pickle.loads(raised[0].read_bytes()) if raised else ended


def _worker(work: Work, stop: Path, records: Path, device: str) -> None:
    """Do the work in one of Ray Train's processes; an error of ours goes into the folder ``records``."""
    place = ray.train.get_context()
    rank = place.get_world_rank()

    def stopped() -> int | None:
        return int(stop.read_text()) if stop.exists() else None

    def hanging(who: str) -> None:
        storage.write_text(records / f"{rank}{HANGING}", who)
        os._exit(os.EX_SOFTWARE)

    # One looks for signals for all: they agree on it at every step.
    asked = None if rank else stopped
    try:
        work(Context(rank, place.get_world_size(), device, stop=asked, records=records, hanging=hanging))
    except FmdistError as error:
        # Handed over, not raised: Ray would print it with its traceback, once for each worker.
        (records / f"{rank}{RAISED}").write_bytes(pickle.dumps(error))
        # The others must not wait for this one.
        if dist.is_initialized():
            dist.destroy_process_group()


def _lost(error: Exception) -> Exception:
    """Return a short account of what ended the workers."""
    failures: Mapping[int, Any] = getattr(error, "worker_failures", {})
    for rank, failure in sorted(failures.items()):
        logger.debug("worker %d: %s", rank, failure)
    kinds = {
        rank: type(getattr(failure, "_base_exc", failure)).__name__ for rank, failure in failures.items()
    }
    said = ", ".join(f"worker {rank}: {kind}" for rank, kind in sorted(kinds.items()))
    return RuntimeError(f"training was cut off ({said or ' '.join(str(error).split())[:300]})")
