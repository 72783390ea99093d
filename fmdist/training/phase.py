"""One optimizer's part of a step, whatever the task."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from fmdist.contracts import Batch, LossOut, Phase, Roles, Task
from fmdist.data.plan import BatchPlan
from fmdist.errors import CapabilityError, TrainingError, did_you_mean
from fmdist.training.config import TrainConfig
from fmdist.training.engine import Engine
from fmdist.training.listeners import Stopwatch
from fmdist.training.optim import build_optimizer
from fmdist.training.snapshot import Trainables
from fmdist.training.strategies.whole import Unit

logger = logging.getLogger(__name__)


@dataclass
class PhaseTrainer:
    """A phase with its optimizer; the sums are those since the last training record."""

    phase: Phase
    task: Task
    engine: Engine
    unit: Unit
    config: TrainConfig
    base_lrs: list[float]
    skipped: int = 0
    """Updates skipped in a row."""
    sums: dict[str, float] = field(default_factory=dict)
    counted: float = 0.0
    grad_norm: float | None = None
    """Before clipping, of the last step where it was finite; None without clipping."""

    def step(
        self,
        roles: Roles,
        window: Sequence[Batch],
        total: float,
        generator: torch.Generator,
        factor: float,
        watch: Stopwatch,
        beside: Sequence[float],
    ) -> list[float]:
        """Make one optimizer step on a window of microbatches, at ``factor`` times the learning rate.

        The loss is a sum over ``total``, which is known before the first forward, so that the split into
        workers and microbatches changes nothing. Synchronizes CPU and GPU once, for the guard.

        Returns:
            The numbers ``beside`` summed over all workers: they travel with the loss, during the backward.

        Raises:
            TrainingError: before the update, on all workers together, if the loss or the gradient's norm is
                not finite.
        """
        unit = self.unit
        unit.zero_grad()
        outs: list[LossOut] = []
        for batch in window:
            with unit.accumulating(batch is window[-1]):
                self.engine.key(generator, batch)
                outs.append(out := self.phase.loss(roles, batch, generator))
                if batch is window[-1]:
                    summed = self._summing(outs, beside)
                watch.lap("forward")
                self.engine.group.meetings += 1
                unit.backward(out.loss_sum, total)
            watch.lap("backward")
        sums, heard = summed()
        loss_sum = sums["loss"]
        finite = math.isfinite(loss_sum)
        if finite:
            for group, base in zip(unit.optimizer.param_groups, self.base_lrs, strict=True):
                group["lr"] = base * factor
            norm = unit.update(self.config.clip_norm)
            finite = norm is None or math.isfinite(norm) or unit.scaled
            self.grad_norm = norm if norm is not None and math.isfinite(norm) else self.grad_norm
        if not finite:
            self._refuse(loss_sum / total)
            return heard
        self.skipped = 0
        if self.phase.after is not None:
            self.phase.after(roles)
        self.counted += total
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        watch.lap("optimizer")
        return heard

    def _summing(
        self, outs: Sequence[LossOut], beside: Sequence[float]
    ) -> Callable[[], tuple[dict[str, float], list[float]]]:
        """Begin to sum the loss, what was logged, and what is ``beside``, over microbatches and workers."""
        names = ["loss", *outs[0].logs]
        values = [value for out in outs for value in (out.loss_sum.detach(), *out.logs.values())]
        waiting = self.engine.group.summing([*values, *beside])

        def wait() -> tuple[dict[str, float], list[float]]:
            found = waiting()
            ours, others = found[: len(values)], found[len(values) :]
            return {name: sum(ours[at :: len(names)]) for at, name in enumerate(names)}, others

        return wait

    def mean_loss(self) -> float:
        """Return the mean loss since the last training record; nan right after one."""
        return self.sums.get("loss", math.nan) / self.counted if self.counted else math.nan

    def take_means(self) -> dict[str, float]:
        """Return the means since the last training record, and begin anew."""
        means = {name: value / self.counted for name, value in self.sums.items()} if self.counted else {}
        self.sums, self.counted = {}, 0.0
        return means

    def state(self) -> dict[str, object]:
        """Return what a checkpoint must know, as JSON that stays as it is while training goes on."""
        return {
            "skipped": self.skipped,
            "sums": dict(self.sums),
            "counted": self.counted,
            "grad_norm": self.grad_norm,
        }

    def load_state(self, state: Mapping[str, object]) -> None:
        """Restore what `state` returned."""
        for name, value in state.items():
            setattr(self, name, value)

    def _refuse(self, loss: float) -> None:
        what = "gradient norm" if math.isfinite(loss) else "loss"
        self.skipped += 1
        self.counted, self.sums = 0.0, {}
        if self.config.non_finite == "stop" or self.skipped > self.config.max_skipped:
            raise TrainingError(
                problem=f"the {what} of '{self.phase.role}' is not finite"
                + (f", {self.skipped} steps in a row" if self.skipped > 1 else ""),
                fix="lower train.lr, set train.clip_norm or warm up longer; the checkpoints before this "
                "step stand. train.non_finite: skip leaves such updates out",
            )
        logger.warning("skipped an update: the %s of '%s' is not finite", what, self.phase.role)


def prepare(
    task: Task, config: TrainConfig, engine: Engine, plan: BatchPlan
) -> tuple[Roles, list[PhaseTrainer], Trainables]:
    """Return the roles as the losses call them, a trainer per phase, and all that a checkpoint holds.

    The weights must be those that training begins with or goes on from: shards are made of them.

    Raises:
        CapabilityError: if the recipe names a role that isn't trained, or a batch is too small for BatchNorm.
    """
    _check(task, config, plan, engine.group.size)
    modules = {role: module.to(engine.device) for role, module in task.roles().items()}
    averages: dict[str, AveragedModel] = {}
    if config.ema is not None:
        average = get_ema_multi_avg_fn(config.ema.decay)  # type: ignore[no-untyped-call]
        for role, module in modules.items():
            averages[role] = AveragedModel(module, multi_avg_fn=average, use_buffers=True)
    roles: dict[str, nn.Module] = dict(modules)
    trainers = []
    for phase in task.phases():
        optimizer = build_optimizer(modules[phase.role], config, config.phases.get(phase.role))
        base_lrs = [float(group["lr"]) for group in optimizer.param_groups]
        unit = engine.prepare(phase.role, modules[phase.role], optimizer)
        roles[phase.role], modules[phase.role] = unit.module, unit.whole
        trainers.append(PhaseTrainer(phase, task, engine, unit, config, base_lrs))

    def refresh() -> None:
        # Running statistics are each process's own; those that are scored must be those that are saved.
        for module in (*roles.values(), *averages.values()):
            engine.group.follow(module.buffers())
        engine.refresh()

    return roles, trainers, Trainables(modules, averages, engine.units, refresh)


def _check(task: Task, config: TrainConfig, plan: BatchPlan, workers: int) -> None:
    roles = [phase.role for phase in task.phases()]
    for role in config.phases:
        if role not in roles:
            raise CapabilityError(
                field=f"train.phases.{role}",
                problem="the task trains no such role",
                allowed=", ".join(roles),
                fix=did_you_mean(role, roles),
            )
    smallest = plan.smallest_batch // (config.accumulate * workers)
    norms = (nn.BatchNorm1d, nn.SyncBatchNorm)
    if smallest < 2 and any(
        isinstance(part, norms) for module in task.roles().values() for part in module.modules()
    ):
        raise CapabilityError(
            field="train.batch_size",
            problem="BatchNorm needs two samples, and one of an epoch's batches or their parts has one",
            value=config.batch_size,
            fix="set train.drop_last: true, or choose another batch size",
        )
