"""The one training loop, for every task and family."""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial

import torch

from fmdist.contracts import Context, Task
from fmdist.data.loader import training_loader
from fmdist.data.plan import BatchPlan
from fmdist.data.splits import DataSplits
from fmdist.errors import Interrupted, TrainingError
from fmdist.training.checkpoint import Saved
from fmdist.training.config import TrainConfig
from fmdist.training.engine import Engine
from fmdist.training.evaluation import evaluate
from fmdist.training.feed import Feed
from fmdist.training.group import Group
from fmdist.training.listeners import (
    MetricsFile,
    NoStopwatch,
    RecordListener,
    StepListener,
    Stopwatch,
    tell,
)
from fmdist.training.optim import lr_factor
from fmdist.training.phase import PhaseTrainer, prepare
from fmdist.training.signals import StopRequest
from fmdist.training.snapshot import Trainables, snapshot
from fmdist.training.writer import Writer

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """Where a run stands; a checkpoint stores it as JSON, and training goes on from exactly here."""

    epoch: int = 0
    position: int = 0
    """Steps made in this epoch; all of them, and still this epoch, if its evaluation is pending."""
    step: int = 0
    """Optimizer steps made in the run."""
    seconds: float = 0.0
    best: float | None = None
    best_step: int = 0
    stale: int = 0
    """Evaluations since the last that early stopping took for an improvement."""
    reference: float | None = None
    """The primary metric at that evaluation, which a later one must pass by `min_delta`."""
    stopped_early: bool = False
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the last evaluation."""
    samples: int = 0
    """Samples since the last training record, which came after `recorded_seconds`."""
    recorded_seconds: float = 0.0
    metrics_bytes: int = 0
    """Size of metrics.jsonl; records after it belong to steps that were not saved."""


@dataclass
class Equipment:
    """What a loop works with besides the task and the data."""

    engine: Engine
    writer: Writer
    metrics: MetricsFile | None = None
    """Of the first process; the others record nothing."""
    listeners: list[RecordListener] = field(default_factory=list)
    followers: list[StepListener] = field(default_factory=list)
    watch: Stopwatch = field(default_factory=NoStopwatch)
    context: Context = field(default_factory=Context)
    progress: Progress = field(default_factory=Progress)
    """Where the run stands; `fit` keeps it, also for a caller to whom it raises."""


def fit(  # noqa: C901, PLR0915 - one function, so that it reads as numbered prose
    task: Task, data: DataSplits, config: TrainConfig, tools: Equipment, seed: int
) -> Progress:
    """Train until the recipe's last epoch, an early stop, or a signal; resume from the newest checkpoint.

    Every random draw is keyed by (seed, epoch, step) or (seed, epoch, sample), so that a resumed run is
    bit-identical to an uninterrupted one and a checkpoint holds no generator states.

    Raises:
        Interrupted: after SIGTERM or SIGINT, once the state is saved.
        TrainingError: if the loss is not finite.
        CheckpointError: if there are checkpoints and none can be used.
    """
    engine, watch, group = tools.engine, tools.watch, tools.engine.group

    # 1. What is trained, as of the newest whole checkpoint: an optimizer per phase, and the averaged copy of
    #    each role if there is to be one.
    weights = task.sample_weights(data.train.targets)
    plan = BatchPlan(len(data.train), config.batch_size, seed, weights, config.drop_last)
    saved = _newest(tools, task)
    roles, trainers, trainables = prepare(task, config, engine, plan)
    scored = {role: average.module for role, average in trainables.averages.items()} or trainables.roles

    # 2. Where we stand: at that checkpoint, or the beginning.
    saved_step = _resume(saved, tools, config, trainables, trainers)
    progress = tools.progress
    began = time.perf_counter() - progress.seconds
    save = partial(_save, tools, trainables, trainers, began)

    # 3. Batches from here to the end of the run, in an order that the seed alone decides.
    start = (progress.epoch, progress.position)
    if progress.position == plan.steps_per_epoch:
        start = (progress.epoch + 1, 0)
    loader = training_loader(
        data.train, plan, start, config.epochs, group.rank, group.size, config.accumulate, config.workers
    )
    generator = torch.Generator()

    # Closed at the end, since a caught exception would keep the loader's processes alive.
    with StopRequest() as stop, tools.writer, closing(batch for batch in loader) as batches:
        feed = Feed(batches, config.accumulate, task, engine)
        while progress.epoch < config.epochs and not progress.stopped_early:
            for module in roles.values():
                module.train()
            for position in range(progress.position, plan.steps_per_epoch):
                # The last checkpoint is whole before the next is due: a kill costs less than two intervals.
                if config.checkpoint.due(progress.step + 1):
                    tools.writer.wait()

                # 4. One step: every phase that is due sees the same microbatches.
                window = feed.window(_asked(stop, tools.context))
                watch.lap("data")
                engine.seed(generator, step_seed(seed, progress.epoch, position))
                factor = lr_factor(config, progress.step, plan.steps_per_epoch)
                heard = None
                for trainer in trainers:
                    if progress.step % trainer.phase.every == 0:
                        heard = trainer.step(roles, window, feed.total, generator, factor, watch, feed.beside)
                for role, average in trainables.averages.items():
                    average.update_parameters(trainables.roles[role])
                progress.position = position + 1
                progress.step += 1
                progress.samples += min(plan.global_batch, plan.size - position * plan.global_batch)

                # 5. Between two steps: tell, save, stop.
                for follower in tools.followers:
                    follower.step(progress.step, trainers[-1].mean_loss)
                last = progress.position == plan.steps_per_epoch
                if progress.step % config.log_every_steps == 0 or (last and config.evaluates(progress.epoch)):
                    _record(progress, trainers, tools.listeners, time.perf_counter() - began)
                watch.lap("other")
                asked = _asked(stop, tools.context) if group.size == 1 else feed.hear(heard)
                if last or (not config.checkpoint.due(progress.step) and asked is None):
                    continue
                save()
                saved_step = progress.step
                if asked is not None:
                    tools.writer.wait()
                    raise Interrupted(asked, f"saved at step {progress.step}; the same command resumes")

            # 6. The epoch's evaluation, on the averaged weights if there are any.
            score = None
            if config.evaluates(progress.epoch):
                size, device = config.evaluation_batch_size, engine.device
                trainables.refresh()
                with engine.scoring():
                    evaluated = evaluate(task, scored, data.validation, size, device, stop, group)
                if evaluated is None:
                    if saved_step != progress.step:
                        save()
                    tools.writer.wait()
                    raise Interrupted(
                        stop.signal or 0,
                        f"saved before the evaluation at step {progress.step}; the same command resumes",
                    )
                score = _judge(evaluated[0], task, config, progress)
                record = {"split": "validation", "epoch": progress.epoch + 1, "step": progress.step}
                tell(tools.listeners, record | evaluated[0])

            # 7. The epoch is over: save it, and stop where it was asked.
            progress.epoch, progress.position = progress.epoch + 1, 0
            asked = _agree(group, _asked(stop, tools.context))
            ended = progress.epoch == config.epochs or progress.stopped_early or asked is not None
            improved = score is not None and progress.best_step == progress.step
            due = progress.epoch % config.checkpoint.every_epochs == 0 or config.checkpoint.due(progress.step)
            checkpoint = None
            # Nothing to add if this step was saved before an evaluation that is no longer asked for.
            if (ended or improved or due) and (score is not None or saved_step != progress.step):
                checkpoint = save(score)
            if tools.context.report is not None and score is not None:
                tools.writer.wait()
                tools.context.report(progress.metrics, checkpoint)
            if asked is not None:
                tools.writer.wait()
                raise Interrupted(asked, f"saved after epoch {progress.epoch}; the same command resumes")
    return progress


def _asked(stop: StopRequest, context: Context) -> int | None:
    """Return the number of a signal that this process, or the one that started it, has received."""
    if stop.signal is not None or context.stop is None:
        return stop.signal
    return context.stop()


def _agree(group: Group, asked: int | None) -> int | None:
    """Return a signal if any process was asked to stop."""
    return (asked or int(signal.SIGTERM)) if any(group.sum([float(asked or 0)])) else None


def step_seed(seed: int, epoch: int, position: int) -> int:
    """Return the 63-bit seed of a step: splitmix64 (Steele et al. 2014) over the three numbers."""
    state = 0
    for value in (seed, epoch, position):
        state = (state ^ value) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1


def _newest(tools: Equipment, task: Task) -> Saved | None:
    """Load the weights of the newest whole checkpoint, if there is one, into the task's modules."""
    group = tools.engine.group
    # The first process looks, since looking sets damaged checkpoints aside.
    found = None
    if group.leads:
        with group.busy():
            tools.writer.store.bring_back()
            found = tools.writer.store.newest()
    saved: Saved | None = group.share(found)
    if saved is not None:
        tools.writer.store.load_roles(saved, task.roles())
    return saved


def _resume(
    saved: Saved | None,
    tools: Equipment,
    config: TrainConfig,
    trainables: Trainables,
    trainers: Sequence[PhaseTrainer],
) -> int:
    """Restore what a checkpoint says beside the weights and return its step; -1 at the beginning."""
    engine, step = tools.engine, -1
    if saved is not None:
        tools.writer.store.load_progress(saved, trainables)
        progress, step = _restored(saved, config), saved.step
        tools.progress = progress
        engine.load_scaler_state(saved.state["scaler"])
        for trainer in trainers:
            trainer.load_state(saved.state["phases"][trainer.phase.role])
        logger.info("resuming at epoch %d, step %d (%s)", progress.epoch, progress.step, saved.path.name)
    if tools.metrics is not None:
        tools.metrics.cut(tools.progress.metrics_bytes)
    engine.start_trackers(tools.progress.step)
    return step


def _save(
    tools: Equipment,
    trainables: Trainables,
    trainers: Sequence[PhaseTrainer],
    began: float,
    score: float | None = None,
) -> str | None:
    """Have a checkpoint committed and return its folder; None on all processes but the first."""
    copied = snapshot(trainables, tools.engine.group)
    if copied is None or tools.metrics is None:
        return None
    progress = tools.progress
    progress.seconds = time.perf_counter() - began
    progress.metrics_bytes = tools.metrics.synced_size()
    phases = {trainer.phase.role: trainer.state() for trainer in trainers}
    state = {"progress": asdict(progress), "scaler": tools.engine.scaler_state(), "phases": phases}
    return tools.writer.submit(progress.step, copied, state, score)


def _restored(saved: Saved, config: TrainConfig) -> Progress:
    """Return where a checkpoint stands; an early stop holds only for the settings that it was made by."""
    progress = Progress(**saved.state["progress"])
    stopped_by = saved.state.get("recipe", {}).get("train", {}).get("early_stopping")
    settings = config.early_stopping and config.early_stopping.model_dump(mode="json")
    if progress.stopped_early and settings != stopped_by:
        progress.stopped_early, progress.stale, progress.reference = False, 0, progress.best
    return progress


def _record(
    progress: Progress, trainers: Sequence[PhaseTrainer], listeners: Sequence[RecordListener], seconds: float
) -> None:
    """Tell the listeners the means since the last training record."""
    record: dict[str, float | int | str] = {
        "split": "train",
        "epoch": progress.epoch + 1,
        "step": progress.step,
        "lr": trainers[0].unit.optimizer.param_groups[0]["lr"],
        "seconds": seconds,
        "samples_per_s": progress.samples / max(seconds - progress.recorded_seconds, 1e-9),
    }
    for trainer in trainers:
        suffix = "" if len(trainers) == 1 else f"_{trainer.phase.role}"
        for name, mean in trainer.take_means().items():
            record[f"{name}{suffix}"] = mean
        if trainer.grad_norm is not None:
            record[f"grad_norm{suffix}"] = trainer.grad_norm
    tell(listeners, record)
    progress.samples, progress.recorded_seconds = 0, seconds


def _judge(metrics: dict[str, float], task: Task, config: TrainConfig, progress: Progress) -> float:
    """Note an evaluation in ``progress`` and return the score by which checkpoints are chosen."""
    name, mode = task.primary
    score = metrics[name]
    if wrong := [metric for metric, value in metrics.items() if not math.isfinite(value)]:
        raise TrainingError(
            problem=f"on the validation split these metrics are not finite: {', '.join(wrong)}",
            fix="lower train.lr, set train.clip_norm or warm up longer",
        )
    progress.metrics = metrics
    margin = config.early_stopping.min_delta if config.early_stopping else 0.0
    sign = 1 if mode == "max" else -1
    better = progress.best is None or sign * score > sign * progress.best
    # Not the best: small improvements add up. Checkpoints from before there was a reference have the best.
    reference = progress.best if progress.reference is None else progress.reference
    progress.stale += 1
    if reference is None or sign * score > sign * reference + margin:
        progress.stale, progress.reference = 0, score
    if better:
        progress.best, progress.best_step = score, progress.step
    if config.early_stopping is not None and progress.stale >= config.early_stopping.patience:
        progress.stopped_early = True
        logger.info("stopped early: no better %s in %d evaluations", name, progress.stale)
    return score
