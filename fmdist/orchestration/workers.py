"""The workers of a training run: Ray Train starts them, and starts them again where some were lost."""

from __future__ import annotations

import logging
import pickle
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import ray.exceptions
import ray.train
import torch.distributed as dist
from ray.train.torch import TorchConfig, TorchTrainer

from fmdist import storage
from fmdist.contracts import Context
from fmdist.errors import CapabilityError, FmdistError, Interrupted, TrainingError
from fmdist.orchestration.cluster import cluster, wait_for
from fmdist.training.scaling import ScalingConfig
from fmdist.training.signals import StopRequest

Work = Callable[[Context], None]
"""What every worker does; it is pickled."""

STOP = ".stop"
"""File in a run's folder that holds the number of a signal: the workers save and end."""

RAISED = ".error"
"""Ends the name of a file by which a worker hands over what it raised."""

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
        _wait(scaling, threading.Event())
        yield


def _wait(scaling: ScalingConfig, ended: threading.Event) -> None:
    wait_for(_each(scaling), scaling.workers, scaling.placement, scaling.wait_seconds, ended)


def _each(scaling: ScalingConfig) -> dict[str, float]:
    """Return what Ray sets aside for a worker."""
    gpus = scaling.gpus_per_worker
    return {"CPU": scaling.cpus_per_worker} | ({"GPU": gpus} if gpus else {})


def train_on_workers(work: Work, scaling: ScalingConfig, folder: Path) -> None:
    """Let all workers do ``work`` together, and again after one was lost, until it is done; see `ready`.

    SIGTERM and SIGINT are passed on: the workers save at the end of a step, and `Interrupted` is raised here.

    Args:
        work: is given its `Context`; it goes on from the newest checkpoint by itself.
        scaling: the recipe's section.
        folder: of the run, which all machines must share.

    Raises:
        FmdistError: what a worker raised, as it was.
        TrainingError: if workers were lost more often than ``scaling.max_failures``.
    """
    stop, come = folder / STOP, threading.Event()

    def pass_on(number: int) -> None:
        storage.write_text(stop, str(number))
        come.set()

    stop.unlink(missing_ok=True)
    with StopRequest(pass_on) as request:
        try:
            _attempts(work, scaling, folder, request, come)
        finally:
            stop.unlink(missing_ok=True)


def _attempts(
    work: Work, scaling: ScalingConfig, folder: Path, request: StopRequest, come: threading.Event
) -> None:
    for attempt in range(scaling.max_failures + 1):
        failure = _attempt(work, scaling, folder)
        if failure is None:
            return
        if isinstance(failure, FmdistError):
            raise failure
        if request.signal is not None:
            raise Interrupted(request.signal, "the newest checkpoint is kept; the same command resumes")
        if attempt == scaling.max_failures:
            raise TrainingError(
                problem=f"a worker was lost {attempt + 1} times ({failure})",
                fix="the same command goes on from the newest checkpoint; scaling.max_failures allows more",
            )
        seconds = min(scaling.backoff_seconds * 2**attempt, LONGEST_WAIT)
        logger.warning("%s. Going on from the newest checkpoint in %.3g s", failure, seconds)
        come.wait(seconds)
        # Ray itself would wait for a lost machine for ever.
        _wait(scaling, come)
        if request.signal is not None:
            raise Interrupted(request.signal, "the newest checkpoint is kept; the same command resumes")


def _attempt(work: Work, scaling: ScalingConfig, folder: Path) -> Exception | None:
    """Return None once the work is done, or what ended it."""
    gpus = bool(scaling.gpus_per_worker)
    # Ray's own records of this attempt, where all machines find them; the run's checkpoints are fmdist's.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".ray-", suffix=".tmp") as records:
        trainer = TorchTrainer(
            partial(_worker, work, folder / STOP, Path(records), "auto" if gpus else "cpu"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=scaling.workers,
                use_gpu=gpus,
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
        # The second is the controller's, which runs in a process of its own.
        except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
            ended = _lost(error)
        # The folder is this user's alone, so what lies there was written by the workers.
        raised = sorted(Path(records).glob(f"*{RAISED}"))
        return pickle.loads(raised[0].read_bytes()) if raised else ended


def _worker(work: Work, stop: Path, errors: Path, device: str) -> None:
    """Do the work in one of Ray Train's processes; an error of ours goes into the folder ``errors``."""
    place = ray.train.get_context()

    rank = place.get_world_rank()
    if not errors.is_dir():
        raise CapabilityError(
            field="-o",
            problem=f"the machine {socket.gethostname()} doesn't see the run's folder",
            value=str(stop.parent),
            fix="give one on storage that all machines share",
        )

    def stopped() -> int | None:
        return int(stop.read_text()) if stop.exists() else None

    try:
        # One looks for all: they agree on it at every step.
        work(Context(rank, place.get_world_size(), device, stop=None if rank else stopped))
    except FmdistError as error:
        # Handed over, not raised: Ray would print it with its traceback, once for each worker.
        (errors / f"{rank}{RAISED}").write_bytes(pickle.dumps(error))
        # The others must not wait for this one.
        if dist.is_initialized():
            dist.destroy_process_group()


def _lost(error: Exception) -> Exception:
    """Return a short account of what ended the workers, or an error of ours that Ray handed over."""
    failures: Mapping[int, Any] = getattr(error, "worker_failures", {})
    for rank, failure in sorted(failures.items()):
        logger.debug("worker %d: %s", rank, failure)
    causes = {rank: getattr(failure, "_base_exc", failure) for rank, failure in sorted(failures.items())}
    for cause in causes.values():
        if isinstance(cause, FmdistError):
            return cause
    said = ", ".join(f"worker {rank}: {type(cause).__name__}" for rank, cause in causes.items())
    return RuntimeError(f"training was cut off ({said or ' '.join(str(error).split())[:300]})")
