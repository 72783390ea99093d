"""One training session: the engine, the listeners and the loop, around a run's folder."""

from __future__ import annotations

from contextlib import ExitStack

from fmdist.contracts import Context, Task
from fmdist.data.splits import DataSplits
from fmdist.training.checkpoint import CheckpointStore, parameter_count
from fmdist.training.config import TrainConfig
from fmdist.training.engine import engine
from fmdist.training.listeners import (
    NoStopwatch,
    Profiler,
    ProgressLine,
    RecordListener,
    StepListener,
    Stopwatch,
    Trackers,
    metrics_file,
)
from fmdist.training.loop import Equipment, Progress, fit
from fmdist.training.run import CHECKPOINTS, RunFolder, summary


def train_run(
    run: RunFolder,
    task: Task,
    data: DataSplits,
    config: TrainConfig,
    seed: int,
    context: Context,
    profile: bool,
) -> Progress:
    """Train into a run's folder and return where training ended; see `fmdist.training.loop.fit`.

    Raises:
        CapabilityError: if the device or the precision isn't available here.
        DependencyMissing: if a tracker's extra isn't installed.
    """
    steps = -(-len(data.train) // config.batch_size) * config.epochs
    with ExitStack() as stack:
        metrics = stack.enter_context(metrics_file(run.path / "metrics.jsonl"))
        working = stack.enter_context(engine(config, context, run.path))
        line = stack.enter_context(ProgressLine(steps, task.primary[0]))
        followers: list[StepListener] = [line]
        watch: Stopwatch = NoStopwatch()
        if profile:
            watch = profiler = stack.enter_context(Profiler(run.path / "profile"))
            followers.append(profiler)
        store = CheckpointStore(run.path / CHECKPOINTS, task.primary[1], config.checkpoint, run.origin)
        records: list[RecordListener] = [metrics, Trackers(working), line]
        tools = Equipment(working, store, metrics, records, followers, watch, context)
        parameters = sum(parameter_count(module) for module in task.roles().values())
        run.write("running", {"parameters": parameters})
        progress = fit(task, data, config, tools, seed)
        working.release(task.roles().values())
        run.write("running", summary(progress, task))
    return progress
