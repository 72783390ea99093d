"""Distillation: any task whose outputs a teacher can show, learned from the labels and from the teacher.

Shapes: B batch, T time, K outputs or tokens of the vocabulary; ``outputs`` are (B, K) or (B, T, K).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fmdist.contracts import Batch, Draw, LossOut, Phase, Roles, Task
from fmdist.data.preprocess import Preprocess
from fmdist.data.splits import DataSplits
from fmdist.errors import CapabilityError, DataError
from fmdist.training.distill_config import DistillConfig
from fmdist.training.wrapped import Wrapped

FIELD = "distill.teacher"


def class_losses(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return T^2 KL(teacher || student) of the softmax over the last axis at temperature T, one per row.

    Its gradient is that of the soft cross-entropy of Hinton et al. 2015 (arXiv:1503.02531, section 2).

    >>> class_losses(torch.zeros(1, 2), torch.zeros(1, 2), 4.0)
    tensor([0.])
    """
    log_student = functional.log_softmax(student / temperature, dim=-1)
    log_teacher = functional.log_softmax(teacher / temperature, dim=-1)
    divergence = functional.kl_div(log_student, log_teacher, reduction="none", log_target=True)
    return divergence.sum(dim=-1) * temperature**2


def label_losses(student_BK: Tensor, teacher_BK: Tensor, temperature: float) -> Tensor:
    """Return T^2 times the binary cross-entropy at temperature T, averaged over labels, one per row."""
    probabilities_BK = torch.sigmoid(teacher_BK / temperature)
    losses_BK = functional.binary_cross_entropy_with_logits(
        student_BK / temperature, probabilities_BK, reduction="none"
    )
    return losses_BK.mean(dim=-1) * temperature**2


@dataclass(frozen=True)
class Teacher:
    """A trained model and what it reads."""

    task: Task
    """With the trained weights, in evaluation mode."""
    preprocessing: Mapping[str, Any]
    """As `fmdist.data.preprocess.Preprocess.from_json` reads it."""


class Distilled(Wrapped):
    """A task whose loss has the teacher's part; in all else it is the task that it wraps.

    The teacher is none of the roles: it isn't trained, averaged or saved, and evaluation doesn't need it.
    """

    def __init__(
        self,
        task: Task,
        config: DistillConfig,
        teacher: nn.Module,
        clean: Callable[[NDArray[np.int64]], Sequence[Tensor]] | None = None,
    ) -> None:
        """Wrap a task; use `distill`, which checks that the teacher fits.

        Args:
            task: has one phase, whose role is what it serves.
            config: the section.
            teacher: maps what the student reads to outputs of the same shape.
            clean: the teacher's inputs for samples of the training split; None gives it the student's.
        """
        super().__init__(task)
        self._config = config
        self._teacher = teacher.eval().requires_grad_(False)
        self._clean = clean
        self._rule = str(task.decoding()["rule"])
        self._std_K = torch.tensor([std or 1.0 for _, std in task.spec.moments])

    def phases(self) -> tuple[Phase, ...]:
        """Return the task's phase with the teacher's part in its loss."""
        (phase,) = self._task.phases()

        def loss(roles: Roles, batch: Batch, generator: torch.Generator) -> LossOut:
            student = _Recorder(roles[phase.role])
            hard = phase.loss({**roles, phase.role: student}, batch, generator)
            ((given, outputs),) = student.calls
            return self._mix(hard, self._soft(outputs, given, batch))

        return (Phase(phase.role, loss, phase.every),)

    def _mix(self, hard: LossOut, soft_mean: Tensor) -> LossOut:
        """Return both parts over the same count."""
        share = self._config.soft_weight
        soft_sum = soft_mean * hard.count
        logs = {"hard_loss": hard.loss_sum.detach(), "soft_loss": soft_sum.detach()}
        loss_sum = (1 - share) * hard.loss_sum + share * soft_sum
        return LossOut(loss_sum, hard.count, {**hard.logs, **logs})

    def _soft(self, outputs: Tensor, given: Sequence[Tensor], batch: Batch) -> Tensor:
        """Return the mean loss against the teacher's outputs over samples, or over tokens that are scored."""
        if self._clean is not None:
            given = [value.to(outputs.device) for value in self._clean(batch["index"].cpu().numpy())]
        if next(self._teacher.parameters()).device != outputs.device:
            self._teacher.to(outputs.device)
        with torch.no_grad():
            taught = self._teacher(*given).to(outputs.dtype)
        if taught.shape != outputs.shape:
            raise CapabilityError(
                field=FIELD,
                problem="the teacher's outputs have another shape than the student's",
                value=tuple(taught.shape),
                allowed=str(tuple(outputs.shape)),
            )
        losses = self._losses(outputs, taught)
        if losses.ndim == 1:
            return losses.mean()
        scored_BT = batch["target"][:, -losses.shape[1] :] != 0
        return losses[scored_BT].mean()

    def _losses(self, outputs: Tensor, taught: Tensor) -> Tensor:
        temperature, hard = self._config.temperature, self._config.targets == "hard"
        if self._rule == "value":
            return (((outputs - taught) / self._std_K.to(outputs)) ** 2).mean(dim=-1)
        if self._rule == "labels":
            if hard:
                answers = (taught > 0).to(outputs)
                losses = functional.binary_cross_entropy_with_logits(outputs, answers, reduction="none")
                return losses.mean(dim=-1)
            return label_losses(outputs, taught, temperature)
        if hard:
            return functional.cross_entropy(outputs.movedim(-1, 1), taught.argmax(dim=-1), reduction="none")
        return class_losses(outputs, taught, temperature)


class _Recorder(nn.Module):
    """Calls a module and keeps what went in and came out: one forward serves both parts of the loss."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.calls: list[tuple[tuple[Tensor, ...], Tensor]] = []

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the module's outputs."""
        outputs: Tensor = self.module(*inputs)
        self.calls.append((inputs, outputs))
        return outputs


def distill(task: Task, config: DistillConfig, teacher: Teacher, data: DataSplits) -> Distilled:
    """Return ``task`` with the teacher's part in its loss.

    Raises:
        CapabilityError: if this task can't be distilled, or the teacher learned something else, or reads
            something else.
    """
    phases, roles = task.phases(), task.roles()
    rule = task.decoding()["rule"]
    direct = rule in ("class", "labels", "value")
    if len(phases) != 1 or task.served(roles) is not roles[phases[0].role]:
        raise CapabilityError(
            field="distill", problem="the task trains another module than the one it serves", value=rule
        )
    if rule == "value" and config.targets == "hard":
        raise CapabilityError(
            field="distill.targets",
            problem="a teacher's numbers are its answer already",
            value="hard",
            allowed="soft",
        )
    _check_target(task, teacher.task)
    first = np.arange(min(len(data.train), 256))
    if direct and task.count(data.train.__getitems__(Draw(0, first))) != len(first):
        raise CapabilityError(
            field="distill",
            problem="the task's loss weighs samples differently, and the teacher's part of it doesn't",
            fix="set task.class_weights: none; task.sampling: balanced draws rare classes more often instead",
        )
    module = teacher.task.served(teacher.task.roles())
    if not config.noisy_student:
        _check_inputs(task, teacher, data)
        return Distilled(task, config, module)
    if not direct:
        raise CapabilityError(
            field="distill.noisy_student",
            problem="a task on tokens has no samples of which the teacher could see another version",
            value=True,
            allowed="false",
        )
    _check_noise(task, data)
    return Distilled(task, config, module, _clean_inputs(teacher, data))


def _check_target(task: Task, teacher: Task) -> None:
    ours, theirs = task.spec.target, teacher.spec.target
    if ours != theirs:
        raise CapabilityError(
            field=FIELD,
            problem="the teacher has learned another target",
            value=f"{theirs.kind} of {theirs.size or list(theirs.names)}",
            allowed=f"{ours.kind} of {ours.size or list(ours.names)}, in this order",
        )
    if ours.kind == "tokens" and dict(task.spec.tokenizers) != dict(teacher.spec.tokenizers):
        raise CapabilityError(
            field=FIELD,
            problem="the teacher has another vocabulary, of the same size",
            fix="train the teacher on the same data with the same seed",
        )


def _check_inputs(task: Task, teacher: Teacher, data: DataSplits) -> None:
    """Both read the same batch, so it must mean the same to both."""
    # As JSON, since one of them was read from a file.
    theirs, ours = (
        json.loads(json.dumps(facts)) for facts in (teacher.preprocessing, data.preprocess.to_json())
    )
    others = [key for key in theirs | ours if theirs.get(key) != ours.get(key)]
    if others or teacher.task.inputs != task.inputs:
        raise CapabilityError(
            field=FIELD,
            problem="the teacher reads its inputs by another preprocessing than this data's: another "
            + (", ".join(others) or "shape"),
            fix="train the teacher with the same data section and seed (or the same data.split.seed), or set "
            "distill.noisy_student: true, where it sees the samples by its own",
        )


def _check_noise(task: Task, data: DataSplits) -> None:
    drops = any(
        isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0
        for module in task.roles().values()
        for part in module.modules()
    )
    if not drops and data.train.plain() is data.train:
        raise CapabilityError(
            field="distill.noisy_student",
            problem="there is no noise: no dropout in the model and no augmentation of the data",
            value=True,
            fix="set model.dropout or data.augment, or noisy_student: false",
        )


def _clean_inputs(teacher: Teacher, data: DataSplits) -> Callable[[NDArray[np.int64]], Sequence[Tensor]]:
    preprocess = Preprocess.from_json(teacher.preprocessing)
    names = [item.name for item in teacher.task.inputs]

    def clean(index: NDArray[np.int64]) -> list[Tensor]:
        inputs = preprocess(data.train.raw(index))
        return [torch.from_numpy(inputs[name]) for name in names]

    try:
        clean(np.zeros(1, np.int64))
    except DataError as error:
        raise CapabilityError(
            field=FIELD, problem=f"the teacher can't read this data ({error.problems[0].problem})"
        ) from error
    return clean
