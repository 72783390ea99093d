"""Training after a pass, by the loop that trains everything."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fmdist.compression.finetune_config import FinetuneConfig
from fmdist.contracts import Context, Phase, Roles, Task
from fmdist.data.splits import DataSplits
from fmdist.training import run as runs
from fmdist.training.config import CheckpointConfig, TrainConfig
from fmdist.training.distill_config import DistillConfig
from fmdist.training.distillation import Teacher, distill
from fmdist.training.session import train_run
from fmdist.training.wrapped import Wrapped


class KeepingZeros(Wrapped):
    """A task whose weights stay zero where they are zero now; in all else it is the task that it wraps."""

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._again = {role: keeping_zeros(module.parameters()) for role, module in task.roles().items()}

    def phases(self) -> tuple[Phase, ...]:
        """Return the task's phases, after each of which the zeros are zero again."""

        def after(phase: Phase) -> Callable[[Roles], None]:
            def both(roles: Roles) -> None:
                self._again[phase.role]()
                if phase.after is not None:
                    phase.after(roles)

            return both

        return tuple(replace(phase, after=after(phase)) for phase in self._task.phases())


def keeping_zeros(parameters: Iterable[nn.Parameter]) -> Callable[[], None]:
    """Return what makes weights zero again that are zero now; call it after every step of an optimizer.

    Only parameters of two or more dimensions are kept so, since a bias may be zero by chance. With an
    optimizer of torch: ``optimizer.register_step_post_hook(lambda *_: again())``.
    """
    masks: list[tuple[nn.Parameter, Tensor]] = [
        (value, value.detach() != 0) for value in parameters if value.ndim >= 2 and bool((value == 0).any())
    ]

    def again() -> None:
        with torch.no_grad():
            for position, (value, mask) in enumerate(masks):
                if mask.device != value.device:
                    masks[position] = value, mask = value, mask.to(value.device)
                value.mul_(mask)

    return again


def finetune(
    task: Task,
    original: Task,
    splits: DataSplits,
    config: FinetuneConfig,
    recipe: Mapping[str, Any],
    folder: Path,
    keep_zeros: bool = False,
) -> None:
    """Train a task on and leave it with its best weights; goes on where it was interrupted.

    Args:
        task: is changed in place; on the CPU afterwards.
        original: the uncompressed model's, whose copy is the teacher if there is to be one.
        splits: train and validation are used.
        config: how it is trained.
        recipe: the run's; its ``train`` section holds but for what ``config`` says.
        folder: for the checkpoints, of this training alone.
        keep_zeros: see `KeepingZeros`.

    Raises:
        Interrupted: by a signal, once the state is saved.
        TrainingError: if the loss is not finite.
        CapabilityError: if this task can't be distilled.
    """
    train = TrainConfig.model_validate(recipe.get("train") or {}, strict=False)
    train = train.model_copy(
        update={
            "epochs": config.epochs,
            "lr": config.lr or train.lr,
            "early_stopping": None,
            "evaluate_every_epochs": 1,
            "checkpoint": CheckpointConfig(),
            "trackers": (),
        }
    )
    learned: Task = task
    if config.distill is not None:
        # A teacher is frozen, and goes to the student's device: later passes begin with this very module.
        teacher = Teacher(copy.deepcopy(original), splits.preprocess.to_json())
        settings = DistillConfig(teacher=Path(), **config.distill.model_dump())
        learned = distill(task, settings, teacher, splits)
    if keep_zeros:
        learned = KeepingZeros(learned)
    plain = {**recipe, "train": train.model_dump(mode="json")}
    if not runs.is_finished(folder, plain):
        _train(task, learned, splits, train, plain, folder)
    runs.load_best(folder, task)


def train_to_end(
    task: Task,
    splits: DataSplits,
    settings: Mapping[str, Any],
    recipe: Mapping[str, Any],
    folder: Path,
) -> None:
    """Train a task and leave it with its last weights, not its best; goes on where it was interrupted.

    Args:
        task: is changed in place; on the CPU afterwards.
        splits: train and validation are used.
        settings: of the ``train`` section, in place of the recipe's.
        recipe: the run's.
        folder: for the checkpoints, of this training alone.

    Raises:
        Interrupted: by a signal, once the state is saved.
        TrainingError: if the loss is not finite.
    """
    train = TrainConfig.model_validate(recipe.get("train") or {}, strict=False)
    common = {"early_stopping": None, "ema": None, "checkpoint": CheckpointConfig(), "trackers": ()}
    train = train.model_copy(update={**common, **settings})
    plain = {**recipe, "train": train.model_dump(mode="json")}
    if runs.is_finished(folder, plain):
        # Its best weights are on disk and its last ones may not be: what came of it wasn't kept in time.
        shutil.rmtree(folder)
    _train(task, task, splits, train, plain, folder)
    for module in task.roles().values():
        module.cpu().eval()


def _train(
    task: Task,
    learned: Task,
    splits: DataSplits,
    train: TrainConfig,
    recipe: Mapping[str, Any],
    folder: Path,
) -> None:
    with runs.open_run(folder, recipe) as run:
        runs.begin(run, recipe, runs.signature(task, splits), splits.record)
        train_run(run, learned, splits, train, int(recipe.get("seed", 0)), Context())
        run.write("finished", {})
