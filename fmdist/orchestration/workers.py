"""The workers of a training run: Ray Train starts them, and starts them again where some were lost."""

from __future__ import annotations

import logging
import os
import pickle
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray.exceptions
import ray.train
import torch.distributed as dist
from ray._raylet import PlacementGroupID
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.util import placement_group_table, remove_placement_group
from ray.util.placement_group import PlacementGroup

from fmdist import storage
from fmdist.background import running
from fmdist.contracts import Context
from fmdist.errors import CapabilityError, FmdistError, Interrupted, TrainingError
from fmdist.orchestration.cluster import is_own, wait_for
from fmdist.orchestration.overseer import Overseer, each, possible
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

LONGEST_WAIT = 60.0
"""Seconds between two attempts, at most."""

logger = logging.getLogger(__name__)


def train_on_workers(work: Work, scaling: ScalingConfig, folder: Path, sizes: Sequence[int]) -> None:
    """Let all workers do ``work`` together, and again after one was lost, until it is done.

    The cluster must be connected; see `fmdist.orchestration.overseer.ready`.
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
        # Ray itself would wait for a lost machine for ever.
        wait_for(each(scaling), run.sizes[0], scaling.placement, scaling.wait_seconds, come)
        size = possible(scaling, run.sizes)
        run.stop.unlink(missing_ok=True)  # what the last overseer asked for
        if (number := request.signal) is not None:
            raise Interrupted(number, "the newest checkpoint is kept; the same command resumes")
        if not size:  # it went again in between, and Ray would take 0 for training in this process
            continue
        overseer = Overseer(scaling, run.sizes, size, run.stop)
        with running(overseer.watch, "overseer"):
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


def _attempt(work: Work, scaling: ScalingConfig, size: int, run: _Run) -> Exception | None:
    """Return None once the work is done, or what ended it."""
    gpus = bool(scaling.gpus_per_worker)
    folder = run.folder
    # Ray's own records of this attempt, where all machines find them; the run's checkpoints are fmdist's.
    # A worker that is about to be killed may still write there.
    with tempfile.TemporaryDirectory(
        dir=folder, prefix=".ray-", suffix=".tmp", ignore_cleanup_errors=True
    ) as records:
        trainer = _Trainer(
            partial(_worker, work, run.stop, Path(records), "auto" if gpus else "cpu"),
            scaling_config=ray.train.ScalingConfig(
                num_workers=size,
                use_gpu=gpus,
                resources_per_worker=each(scaling),
                placement_strategy=scaling.placement.upper(),
            ),
            run_config=ray.train.RunConfig(
                name=f"{folder.name}-{time.time_ns()}",
                storage_path=records,
                # Not even starting is tried again by Ray Train: it would ask for as many workers for ever.
                failure_config=ray.train.FailureConfig(  # type: ignore[call-arg]
                    max_failures=0, controller_failure_limit=0
                ),
            ),
            torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        )
        ended: Exception | None = None
        try:
            trainer.fit()
        # The second is the controller's, which runs in a process of its own.
        except (ray.train.TrainingFailedError, ray.exceptions.RayActorError) as error:
            ended = _lost(error)
            if is_own():
                _free()
        if hanging := sorted(Path(records).glob(f"*{HANGING}")):
            ended = RuntimeError(hanging[0].read_text(encoding="utf-8"))
        # The folder is this user's alone, so what lies there was written by the workers.
        raised = sorted(Path(records).glob(f"*{RAISED}"))
        return pickle.loads(raised[0].read_bytes()) if raised else ended


class _Trainer(TorchTrainer):
    """Ray's trainer without the helpers that have nothing to do here: each is a process and seconds."""

    def _create_default_callbacks(self) -> list[Any]:
        # Batches don't come from Ray Data.
        idle: tuple[type, ...] = (DatasetsCallback,)
        if is_own():
            # It asks the dashboard, which a cluster of one's own hasn't got; see `_free`.
            idle += (PlacementGroupCleanerCallback,)
        found = super()._create_default_callbacks()  # type: ignore[misc]
        return [callback for callback in found if not isinstance(callback, idle)]


def _free() -> None:
    """Give back what a controller that was lost had reserved in a cluster of one's own."""
    for key, group in placement_group_table().items():
        if group["state"] != "REMOVED":
            remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(key)))


def _worker(work: Work, stop: Path, records: Path, device: str) -> None:
    """Do the work in one of Ray Train's processes; an error of ours goes into the folder ``records``."""
    place = ray.train.get_context()
    rank = place.get_world_rank()
    if not records.is_dir():
        raise CapabilityError(
            field="-o",
            problem=f"the machine {socket.gethostname()} doesn't see the run's folder",
            value=str(stop.parent),
            fix="give one on storage that all machines share",
        )

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


def _brief(cause: Any) -> str:
    return f"{type(cause).__name__} {' '.join(str(cause).split())[:200]}".rstrip()


def _lost(error: Exception) -> Exception:
    """Return a short account of what ended the workers, or an error of ours that Ray handed over."""
    failures: Mapping[int, Any] = getattr(error, "worker_failures", {})
    for rank, failure in sorted(failures.items()):
        logger.debug("worker %d: %s", rank, failure)
    causes = {rank: getattr(failure, "_base_exc", failure) for rank, failure in sorted(failures.items())}
    for cause in causes.values():
        if isinstance(cause, FmdistError):
            return cause
    said = ", ".join(f"worker {rank}: {_brief(cause)}" for rank, cause in causes.items())
    return RuntimeError(f"training was cut off ({said or ' '.join(str(error).split())[:300]})")
