"""What most tasks share: one model, one phase, a loss that is a sum over a known count."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fmdist.contracts import Batch, DataSpec, LossOut, ModelBuilder, Phase, Roles, Task
from fmdist.errors import CapabilityError
from fmdist.metrics import Metric, MetricCollection
from fmdist.recipe.schema import ComponentConfig

TASK_HINT = "'fmdist list tasks' says what each task learns"


class TaskConfig(ComponentConfig):
    """The base of every task kind's ``Config``."""

    needs: ClassVar[str] = "outputs"
    """The form of model that the task trains; see `fmdist.models.base.FORMS`."""

    @property
    def not_sharded(self) -> str | None:
        """Why strategies other than ddp can't train the task; None if they can."""
        return None

    def build(self, spec: DataSpec, model: ModelBuilder) -> Task:
        """Return the task with its modules built.

        Raises:
            CapabilityError: if the data's target isn't what this task learns.
        """
        raise NotImplementedError


class OneModelTask:
    """One model from the data's inputs, in one phase, whose loss is summed over samples."""

    primary: tuple[str, Literal["max", "min"]]

    def __init__(self, spec: DataSpec, model: nn.Module) -> None:
        self.spec = spec
        self.inputs = spec.inputs
        self._roles = {"model": model}
        self._names = [item.name for item in spec.inputs]

    def roles(self) -> dict[str, nn.Module]:
        """Return ``{"model": module}``."""
        return self._roles

    def take(self, model: nn.Module) -> None:
        """Take another model, whose outputs (B, K) are the rows as they are: values in the targets' units."""
        self._roles["model"] = model

    def phases(self) -> tuple[Phase, ...]:
        """Return the only phase."""
        return (Phase("model", self.loss),)

    def count(self, batch: Batch) -> float:
        """Return the number of samples."""
        return len(batch["target"])

    def served(self, roles: Roles) -> nn.Module:
        """Return the model."""
        return roles["model"]

    def outputs(self, roles: Roles, batch: Batch) -> Tensor:
        """Return the model's outputs (B, K)."""
        outputs_BK: Tensor = roles["model"](*[batch[name] for name in self._names])
        return outputs_BK

    def sample_weights(self, targets: NDArray[Any]) -> NDArray[np.float64] | None:
        """Return None: each training sample once per epoch."""
        return None

    def loss(self, roles: Roles, batch: Batch, generator: torch.Generator) -> LossOut:
        """Return the loss summed over the batch, in training mode."""
        raise NotImplementedError

    def metrics(self) -> MetricCollection:
        """Return fresh metrics on (outputs, target)."""
        raise NotImplementedError


class SummedLoss(Metric):
    """The mean loss over all samples seen, right whatever their batches' sizes and ranks."""

    higher_is_better = False
    full_state_update = False
    loss_sum: Tensor
    count: Tensor

    def __init__(self, loss_sum: Callable[[Tensor, Tensor], tuple[Tensor, float]]) -> None:
        super().__init__()
        self._loss_sum = loss_sum
        self.add_state("loss_sum", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, target: Tensor) -> None:
        """Add a batch: outputs (B, K) and its targets."""
        loss_sum, count = self._loss_sum(outputs, target)
        self.loss_sum += loss_sum
        self.count += count

    def compute(self) -> Tensor:
        """Return the mean loss."""
        return self.loss_sum / self.count


def choose_primary(
    name: str, modes: Mapping[str, Literal["max", "min"]]
) -> tuple[str, Literal["max", "min"]]:
    """Return the metric that chooses the best checkpoint, with its direction.

    Raises:
        CapabilityError: if the task has no such metric.
    """
    if name not in modes:
        raise CapabilityError(
            field="task.primary",
            problem="the task has no such metric for this data",
            value=name,
            allowed=", ".join(modes),
        )
    return name, modes[name]
