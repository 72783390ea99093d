"""Regression: one or several numbers per sample."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fmdist.contracts import Batch, Dataset, DataSpec, LossOut, ModelBuilder, Roles
from fmdist.errors import CapabilityError
from fmdist.metrics import MeanAbsoluteError, MeanSquaredError, MetricCollection, R2Score
from fmdist.tasks.base import TASK_HINT, OneModelTask, SummedLoss, TaskConfig, choose_primary


class Config(TaskConfig):
    """A loss on targets scaled to zero mean and unit deviation; outputs and metrics in the original units."""

    loss: Literal["mse", "l1", "huber"] = "mse"
    """Squared error, absolute error, or Huber's (quadratic below `huber_delta`, linear beyond)."""
    huber_delta: float = Field(default=1.0, gt=0)
    """Where Huber's loss turns linear, in standard deviations of the target."""
    primary: str | None = None
    """Metric that chooses the best checkpoint; by default rmse."""

    def build(self, spec: DataSpec, model: ModelBuilder) -> Regression:
        """Return the task; see `TaskConfig.build`."""
        if spec.target.kind != "value":
            raise CapabilityError(
                field="task.kind",
                problem=f"'regression' needs numbers and the data's target is of kind '{spec.target.kind}'",
                fix="use task.kind 'classification'"
                if spec.target.kind in ("class", "labels")
                else TASK_HINT,
            )
        return Regression(self, spec, Rescaled(model.build(spec, len(spec.target.names)), spec.moments))


class Rescaled(nn.Module):
    """A model whose outputs are scaled back to the targets' units, in its exports too."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, moments: tuple[tuple[float, float], ...]) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor([mean for mean, _ in moments]))
        self.register_buffer("std", torch.tensor([std or 1.0 for _, std in moments]))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return values (B, K) in the targets' units."""
        values_BK: Tensor = self.model(*inputs) * self.std + self.mean
        return values_BK


class Regression(OneModelTask):
    """Shapes: B batch, K targets; targets float32 (B, K)."""

    def __init__(self, config: Config, spec: DataSpec, model: Rescaled) -> None:
        super().__init__(spec, model)
        self._config = config
        self._std_K = torch.tensor([std or 1.0 for _, std in spec.moments])
        self.primary = choose_primary(
            config.primary or "rmse", {"rmse": "min", "mae": "min", "r2": "max", "loss": "min"}
        )

    def loss(self, roles: Roles, batch: Batch, generator: torch.Generator) -> LossOut:
        """Return the loss of the scaled targets, averaged over targets and summed over samples."""
        loss_sum, count = self._loss_sum(self.outputs(roles, batch), batch["target"])
        return LossOut(loss_sum, count)

    def metrics(self) -> MetricCollection:
        """Return loss, RMSE, MAE and R2 (uniform average over targets)."""
        return MetricCollection(
            {
                "loss": SummedLoss(self._loss_sum),
                "rmse": MeanSquaredError(squared=False),
                "mae": MeanAbsoluteError(),
                "r2": _R2(),
            },
            compute_groups=False,
        )

    def decoding(self) -> dict[str, Any]:
        """Return the rule that names the numbers."""
        return {"rule": "value", "inputs": self._names, "names": list(self.spec.target.names)}

    def baseline(self, train: Dataset, part: Dataset) -> NDArray[np.float32]:
        """Return the mean of the training targets for every sample."""
        return np.tile(train.targets.mean(axis=0).astype(np.float32), (len(part), 1))

    def _loss_sum(self, values_BK: Tensor, target_BK: Tensor) -> tuple[Tensor, float]:
        std_K = self._std_K.to(values_BK)
        scaled_BK, wanted_BK = values_BK / std_K, target_BK / std_K
        if self._config.loss == "mse":
            losses_BK = functional.mse_loss(scaled_BK, wanted_BK, reduction="none")
        elif self._config.loss == "l1":
            losses_BK = functional.l1_loss(scaled_BK, wanted_BK, reduction="none")
        else:
            losses_BK = functional.huber_loss(
                scaled_BK, wanted_BK, reduction="none", delta=self._config.huber_delta
            )
        return losses_BK.mean(dim=1).sum(), len(target_BK)


class _R2(R2Score):
    """R2 in float64, since it subtracts sums of squares; torchmetrics wants one target's (B, 1) as (B,)."""

    def update(self, outputs: Tensor, target: Tensor) -> None:
        outputs, target = outputs.double(), target.double()
        super().update(outputs.squeeze(1), target.squeeze(1))

    def compute(self) -> Tensor:
        """Return R2, or 0 of a single sample, which has no spread to explain."""
        return super().compute() if self.total > 1 else torch.tensor(0.0, dtype=torch.float64)
