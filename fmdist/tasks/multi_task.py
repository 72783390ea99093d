"""Multi-task learning: several heads over a shared trunk, each for some of the targets.

Shapes: B batch, K targets, F features of the trunk.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fmdist.contracts import Batch, Dataset, DataSpec, LossOut, ModelBuilder, Roles
from fmdist.errors import CapabilityError, did_you_mean
from fmdist.metrics import MetricCollection
from fmdist.recipe.schema import Section
from fmdist.tasks.base import TASK_HINT, OneModelTask, SummedLoss, TaskConfig, choose_primary


class HeadConfig(Section):
    """One head."""

    targets: tuple[str, ...] = Field(min_length=1)
    """Names of the targets that it predicts; each target has one head."""
    hidden: int | None = Field(default=None, ge=1)
    """Units of a hidden layer of its own; null: the head is linear."""
    weight: float = Field(default=1.0, gt=0)
    """Its part in the loss, over the sum of all heads' weights; a teacher's part weighs all targets alike."""


class Config(TaskConfig):
    """Heads for labels or values over one model's features (Caruana 1997, doi:10.1023/A:1007379606734)."""

    heads: dict[str, HeadConfig] = Field(default_factory=dict)
    """Head's name -> what it predicts; empty: one for each target."""
    features: int = Field(default=64, ge=1)
    """Outputs of the model, which all heads share."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """For labels: probability from which a label is given."""
    primary: str | None = None
    """Metric that chooses the best checkpoint; by default loss."""

    def build(self, spec: DataSpec, model: ModelBuilder) -> MultiTask:
        """Return the task; see `TaskConfig.build`."""
        if spec.target.kind not in ("labels", "value"):
            raise CapabilityError(
                field="task.kind",
                problem="'multi_task' needs labels or values and the data's target is of another kind",
                value=spec.target.kind,
                fix=f"use task.kind 'classification' for classes; {TASK_HINT}",
            )
        heads = self.heads or {name: HeadConfig(targets=(name,)) for name in spec.target.names}
        _check(heads, spec.target.names)
        return MultiTask(
            self, spec, heads, Heads(model.build(spec, self.features), self.features, heads, spec)
        )


def _check(heads: Mapping[str, HeadConfig], names: Sequence[str]) -> None:
    twice = [name for name, times in Counter(map(plain, heads)).items() if times > 1]
    if twice:
        raise CapabilityError(
            field="task.heads",
            problem="names that differ in dots and underscores only",
            value=[name for name in heads if plain(name) in twice],
            fix="name the heads: task.heads",
        )
    served = Counter(target for head in heads.values() for target in head.targets)
    for target in served:
        if target not in names:
            raise CapabilityError(
                field="task.heads",
                problem="the data has no such target",
                value=target,
                allowed=", ".join(names),
                fix=did_you_mean(target, names),
            )
    if wrong := [name for name in names if served[name] != 1]:
        raise CapabilityError(
            field="task.heads",
            problem=f"each target needs one head; these have none or several: {', '.join(wrong)}",
            value={name: list(head.targets) for name, head in heads.items()},
        )


class Heads(nn.Module):
    """A trunk and its heads; outputs are in the order of the data's targets, values in their units."""

    mean: Tensor
    std: Tensor
    side_by_side = ("heads",)
    head_prefix = "heads."

    def __init__(
        self, trunk: nn.Module, features: int, heads: Mapping[str, HeadConfig], spec: DataSpec
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.heads = nn.ModuleDict(
            {f"{plain(name)}_head": _head(features, head) for name, head in heads.items()}
        )
        order = [target for head in heads.values() for target in head.targets]
        self.columns = [order.index(name) for name in spec.target.names]
        moments = spec.moments or [(0.0, 1.0)] * len(order)
        self.register_buffer("mean", torch.tensor([mean for mean, _ in moments]))
        self.register_buffer("std", torch.tensor([std or 1.0 for _, std in moments]))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return logits or values (B, K)."""
        features_BF = functional.relu(self.trunk(*inputs))
        outputs_BK = torch.cat([head(features_BF) for head in self.heads.values()], dim=1)[:, self.columns]
        return outputs_BK * self.std + self.mean


def plain(name: str) -> str:
    """Return a head's name without dots, which names of modules and metrics can't have and columns may."""
    return name.replace(".", "_")


def _head(features: int, head: HeadConfig) -> nn.Module:
    outputs = len(head.targets)
    if head.hidden is None:
        return nn.Linear(features, outputs)
    return nn.Sequential(nn.Linear(features, head.hidden), nn.ReLU(), nn.Linear(head.hidden, outputs))


class MultiTask(OneModelTask):
    """Targets float32 (B, K): labels of zeros and ones, or values."""

    def __init__(
        self, config: Config, spec: DataSpec, heads: Mapping[str, HeadConfig], model: nn.Module
    ) -> None:
        super().__init__(spec, model)
        self._config = config
        self._labels = spec.target.kind == "labels"
        self._std_K = torch.tensor([std or 1.0 for _, std in spec.moments])
        names = spec.target.names
        self._columns = {name: [names.index(item) for item in head.targets] for name, head in heads.items()}
        total = sum(head.weight for head in heads.values())
        self._weights_K = torch.zeros(len(names))
        for name, head in heads.items():
            self._weights_K[self._columns[name]] = head.weight / total / len(head.targets)
        self._metric = "accuracy" if self._labels else "mse"
        modes: dict[str, Literal["max", "min"]] = {"loss": "min"}
        for name in heads:
            modes[f"{self._metric}_{plain(name)}"] = "max" if self._labels else "min"
        self.primary = choose_primary(config.primary or "loss", modes)

    def loss(self, roles: Roles, batch: Batch, generator: torch.Generator) -> LossOut:
        """Return the heads' mean losses by their weights, summed over samples."""
        loss_sum, count = self._loss_sum(self.outputs(roles, batch), batch["target"])
        return LossOut(loss_sum, count)

    def metrics(self) -> MetricCollection:
        """Return the loss, and of each head the labels' accuracy, or the squared error over the variance."""
        measure = self._right if self._labels else self._losses
        metrics = {
            f"{self._metric}_{plain(name)}": SummedLoss(partial(_over, columns, measure))
            for name, columns in self._columns.items()
        }
        return MetricCollection({"loss": SummedLoss(self._loss_sum), **metrics}, compute_groups=False)

    def decoding(self) -> dict[str, Any]:
        """Return the rule for labels or for values."""
        rule = {"inputs": self._names, "names": list(self.spec.target.names)}
        if self._labels:
            return {"rule": "labels", **rule, "threshold": self._config.threshold}
        return {"rule": "value", **rule}

    def baseline(self, train: Dataset, part: Dataset) -> NDArray[np.float32]:
        """Return the training split's log odds of each label, or mean of each value."""
        row = train.targets.mean(axis=0)
        if self._labels:
            share = np.clip(row, 1e-6, 1 - 1e-6)
            row = np.log(share / (1 - share))
        return np.tile(row.astype(np.float32), (len(part), 1))

    def _loss_sum(self, outputs_BK: Tensor, target_BK: Tensor) -> tuple[Tensor, float]:
        losses_BK = self._losses(outputs_BK, target_BK)
        return (losses_BK * self._weights_K.to(losses_BK)).sum(), len(target_BK)

    def _losses(self, outputs_BK: Tensor, target_BK: Tensor) -> Tensor:
        if self._labels:
            return functional.binary_cross_entropy_with_logits(outputs_BK, target_BK, reduction="none")
        return ((outputs_BK - target_BK) / self._std_K.to(outputs_BK)) ** 2

    def _right(self, logits_BK: Tensor, target_BK: Tensor) -> Tensor:
        given_BK = torch.sigmoid(logits_BK) >= self._config.threshold
        return (given_BK == target_BK.bool()).float()


def _over(columns: list[int], measure: Any, outputs_BK: Tensor, target_BK: Tensor) -> tuple[Tensor, float]:
    """Return the sum of a measure over some columns, and over how many numbers."""
    found = measure(outputs_BK, target_BK)[:, columns]
    return found.sum(), found.numel()
