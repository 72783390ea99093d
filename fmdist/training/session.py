"""One training session: the engine, the listeners and the loop, around a run's folder."""

from __future__ import annotations

import logging
import socket
from contextlib import ExitStack
from typing import Any

from fmdist import storage
from fmdist.background import running
from fmdist.contracts import Context, Task
from fmdist.data.splits import DataSplits
from fmdist.errors import Interrupted
from fmdist.training.checkpoint import CheckpointStore, parameter_count
from fmdist.training.config import TrainConfig
from fmdist.training.dropout import drawn_by_sample, drawn_by_worker, own_statistics
from fmdist.training.engine import engine
from fmdist.training.group import Group
from fmdist.training.listeners import Profiler, ProgressLine, Trackers, metrics_file
from fmdist.training.loop import Equipment, Progress, fit
from fmdist.training.names import listing
from fmdist.training.run import CHECKPOINTS, RunFolder, summary
from fmdist.training.scaling import ScalingConfig
from fmdist.training.watchdog import Watchdog
from fmdist.training.writer import Writer

LOCK = ".training.lock"
"""File in a run's folder that the process which writes its checkpoints holds.

The command's own lock is not enough: workers that Ray started outlive a killed command for a while.
"""

WAIT_SECONDS = 120.0
"""How long the last one may take to end; NFS keeps a lost machine's locks for 90 s."""

logger = logging.getLogger(__name__)


def train_run(
    run: RunFolder,
    task: Task,
    data: DataSplits,
    config: TrainConfig,
    seed: int,
    context: Context,
    profile: bool = False,
    scaling: ScalingConfig | None = None,
) -> Progress:
    """Train into a run's folder and return where training ended; see `fmdist.training.loop.fit`.

    With ``scaling``, the recipe's section, dropout is keyed by sample.

    Raises:
        CapabilityError: if the device or the precision isn't available here.
        DependencyMissing: if a tracker's extra isn't installed.
        Interrupted: as `fit` does; the run's record then says where training stands.
        CheckpointError: if another process still trains into the folder.
    """
    steps = -(-len(data.train) // config.batch_size) * config.epochs
    with ExitStack() as stack:
        if context.rank == 0:
            stack.enter_context(storage.lock(run.path, LOCK, WAIT_SECONDS))
        roles = [phase.role for phase in task.phases()]
        working = stack.enter_context(engine(config, context, run.path, scaling, roles))
        if scaling is not None:
            stack.enter_context(drawn_by_sample(task.roles().values(), working.draws))
        if scaling and context.world_size > 1 and context.records and context.hanging:
            dog = Watchdog(working.group, scaling.hang_seconds, context.records, context.hanging)
            stack.enter_context(running(dog.watch, "watchdog"))
        store = CheckpointStore(run.path / CHECKPOINTS, task.primary[1], config.checkpoint, run.origin)
        tools = Equipment(working, Writer(store, config.checkpoint.beside, working.group), context=context)
        if working.group.leads:
            tools.metrics = stack.enter_context(metrics_file(run.path / "metrics.jsonl"))
            line = stack.enter_context(ProgressLine(steps, task.primary[0]))
            tools.listeners += [tools.metrics, Trackers(working), line]
            tools.followers.append(line)
        if profile and working.group.leads:
            tools.watch = profiler = stack.enter_context(Profiler(run.path / "profile"))
            tools.followers.append(profiler)
        parameters = sum(parameter_count(module) for module in task.roles().values())
        workers = _workers(task, working.group, scaling)
        run.write("running", {"parameters": parameters, "workers": workers})
        try:
            fit(task, data, config, tools, seed)
        except Interrupted:
            run.record |= summary(tools.progress, task)  # written with the status by `open_run`
            raise
        finally:
            run.record["workers"] |= {"held": working.held}
        working.release()
        run.write("running", summary(tools.progress, task))
    return tools.progress


def _workers(task: Task, group: Group, scaling: ScalingConfig | None) -> dict[str, Any]:
    """Return what the record says of the workers: how many, where, and what depends on that; warn of it."""
    strategy = "ddp" if scaling is None else scaling.strategy
    hosts = group.gather(socket.gethostname())
    if group.size == 1:
        return {"count": 1, "strategy": strategy, "hosts": hosts, "by_worker": []}
    modules = [task.roles()[phase.role] for phase in task.phases()]
    own = [f"the batch statistics of {name}" for name in own_statistics(modules)]
    own += [f"the dropout inside {name}" for name in drawn_by_worker(modules)]
    if own:
        logger.warning(
            "each worker has its own: %s. Training depends a little on the number of workers", listing(own)
        )
    return {"count": group.size, "strategy": strategy, "hosts": hosts, "by_worker": own}
