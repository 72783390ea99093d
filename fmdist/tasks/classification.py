"""Classification: one class of several, or any number of labels."""

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
from fmdist.metrics import (
    MetricCollection,
    MulticlassAccuracy,
    MulticlassF1Score,
    MultilabelAccuracy,
    MultilabelExactMatch,
    MultilabelF1Score,
)
from fmdist.tasks.base import TASK_HINT, OneModelTask, SummedLoss, TaskConfig, choose_primary
from fmdist.tasks.decoding.direct import given


class Config(TaskConfig):
    """Cross-entropy over classes, or binary cross-entropy where a sample has several labels."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target spread evenly over the classes (Szegedy et al. 2016, arXiv:1512.00567)."""
    focal_gamma: float = Field(default=0.0, ge=0)
    """Weighs well-classified samples down by (1 - p)^gamma (Lin et al. 2017, arXiv:1708.02002); 0 is off."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced`: a class counts inversely to its frequency in the training split (labels: positives do)."""
    sampling: Literal["uniform", "balanced"] = "uniform"
    """`balanced`: draw the training samples, with replacement, so that every class comes equally often."""
    mixup: float = Field(default=0.0, ge=0)
    """Alpha of Beta(alpha, alpha) for blending pairs (Zhang et al. 2018, arXiv:1710.09412); 0 is off."""
    cutmix: float = Field(default=0.0, ge=0)
    """Alpha for pasting boxes between images (Yun et al. 2019, arXiv:1905.04899); 0 is off."""
    threshold: float = Field(default=0.5, gt=0, lt=1)
    """For labels: probability from which a label is given."""
    primary: str | None = None
    """Metric that chooses the best checkpoint; by default accuracy for classes, f1_macro for labels."""

    def build(self, spec: DataSpec, model: ModelBuilder) -> Classification:
        """Return the task; see `TaskConfig.build`."""
        if spec.target.kind not in ("class", "labels"):
            raise CapabilityError(
                field="task.kind",
                problem="'classification' needs classes or labels and the data's target is of another kind",
                value=spec.target.kind,
                fix="use task.kind 'regression'" if spec.target.kind == "value" else TASK_HINT,
            )
        if self.mixup and spec.inputs[0].dtype != "float32":
            raise CapabilityError(
                field="task.mixup", problem="mixup blends numbers and the data gives tokens or identifiers"
            )
        if self.sampling == "balanced" and spec.target.kind == "labels":
            raise CapabilityError(
                field="task.sampling",
                problem="'balanced' is defined for one class per sample and the data has several labels",
                fix="use class_weights: balanced",
            )
        if self.cutmix and len(spec.inputs[0].shape) != 3:
            raise CapabilityError(
                field="task.cutmix", problem="cutmix pastes boxes between images and the data has none"
            )
        return Classification(self, spec, model.build(spec, len(spec.target.names)))


class Classification(OneModelTask):
    """Shapes: B batch, K classes or labels; targets int64 (B,) for classes, float32 (B, K) for labels."""

    def __init__(self, config: Config, spec: DataSpec, model: nn.Module) -> None:
        super().__init__(spec, model)
        self._config = config
        self._exclusive = spec.target.kind == "class"
        self._weights_K = _balanced(spec) if config.class_weights == "balanced" else None
        modes: dict[str, Literal["max", "min"]] = {"accuracy": "max", "f1_macro": "max", "loss": "min"}
        if not self._exclusive:
            modes["exact_match"] = "max"
        default = "accuracy" if self._exclusive else "f1_macro"
        self.primary = choose_primary(config.primary or default, modes)

    def loss(self, roles: Roles, batch: Batch, generator: torch.Generator) -> LossOut:
        """Return the loss summed over samples (with class weights: over their weights)."""
        target = batch["target"]
        if self._config.mixup or self._config.cutmix:
            batch, target = self._mix(batch, generator)
        loss_sum, count = self._loss_sum(self.outputs(roles, batch), target)
        return LossOut(loss_sum, count)

    def count(self, batch: Batch) -> float:
        """Return the number of samples, or the sum of their class weights."""
        target = batch["target"]
        if self._weights_K is None or not self._exclusive or self._config.mixup or self._config.cutmix:
            return len(target)
        return float(self._weights_K.to(target.device)[target].sum())

    def metrics(self) -> MetricCollection:
        """Return loss, accuracy and macro F1 (labels: exact match too)."""
        size = len(self.spec.target.names)
        loss = SummedLoss(self._loss_sum)
        if self._exclusive:
            return MetricCollection(
                {
                    "loss": loss,
                    "accuracy": MulticlassAccuracy(size, average="micro", validate_args=False),
                    "f1_macro": MulticlassF1Score(size, average="macro", validate_args=False),
                },
                compute_groups=False,
            )
        threshold = self._config.threshold
        # torchmetrics' checks refuse a single label, which it counts as it does several.
        return MetricCollection(
            {
                "loss": loss,
                "accuracy": LabelAccuracy(size, threshold, average="micro", validate_args=False),
                "f1_macro": LabelF1Score(size, threshold, average="macro", validate_args=False),
                "exact_match": LabelExactMatch(size, threshold, validate_args=False),
            },
            compute_groups=False,
        )

    def decoding(self) -> dict[str, Any]:
        """Return the softmax or the sigmoid rule with the names."""
        names = list(self.spec.target.names)
        if self._exclusive:
            return {"rule": "class", "inputs": self._names, "names": names}
        threshold = self._config.threshold
        return {"rule": "labels", "inputs": self._names, "names": names, "threshold": threshold}

    def baseline(self, train: Dataset, part: Dataset) -> NDArray[np.float32]:
        """Return the log frequency (log odds for labels) in the training split: always the most frequent."""
        if self._exclusive:
            counts_K = np.bincount(train.targets, minlength=len(self.spec.target.names))
            frequency = (counts_K + 1e-6) / len(train)
            row = np.log(frequency)
        else:
            frequency = np.clip(train.targets.mean(axis=0), 1e-6, 1 - 1e-6)
            row = np.log(frequency / (1 - frequency))
        return np.tile(row.astype(np.float32), (len(part), 1))

    def sample_weights(self, targets: NDArray[Any]) -> NDArray[np.float64] | None:
        """Return 1 / frequency of each sample's class if sampling is balanced."""
        if self._config.sampling == "uniform":
            return None
        weights: NDArray[np.float64] = 1.0 / np.bincount(targets)[targets]
        return weights

    def _loss_sum(self, logits_BK: Tensor, target: Tensor) -> tuple[Tensor, float]:
        config = self._config
        weights_K = None if self._weights_K is None else self._weights_K.to(logits_BK)
        if not self._exclusive:
            smoothed_BK = target * (1 - config.label_smoothing) + 0.5 * config.label_smoothing
            losses_BK = functional.binary_cross_entropy_with_logits(
                logits_BK, smoothed_BK, pos_weight=weights_K, reduction="none"
            )
            if config.focal_gamma:
                right_BK = torch.sigmoid(logits_BK) * target + torch.sigmoid(-logits_BK) * (1 - target)
                losses_BK = losses_BK * _focal(right_BK, config.focal_gamma)
            return losses_BK.mean(dim=1).sum(), len(target)
        loss_sum = functional.cross_entropy(
            logits_BK,
            target,
            weight=weights_K,
            reduction="none" if config.focal_gamma else "sum",
            label_smoothing=config.label_smoothing,
        )
        if config.focal_gamma:
            soft = target.is_floating_point()
            share_BK = target if soft else functional.one_hot(target, logits_BK.shape[1])
            right_B = (logits_BK.softmax(dim=1) * share_BK).sum(dim=1)
            loss_sum = (loss_sum * _focal(right_B, config.focal_gamma)).sum()
        if weights_K is None or target.is_floating_point():
            return loss_sum, len(target)
        return loss_sum, float(weights_K[target].sum())

    def _mix(self, batch: Batch, generator: torch.Generator) -> tuple[Batch, Tensor]:
        """Blend each sample with the one before it; mixup or cutmix by a fair coin where both are on."""
        config = self._config
        mixed = dict(batch)
        target = batch["target"]
        if self._exclusive:
            target = functional.one_hot(target, len(self.spec.target.names)).float()
        cut = bool(config.cutmix) and (not config.mixup or bool(torch.rand((), generator=generator) < 0.5))
        alpha = config.cutmix if cut else config.mixup
        share = _beta(alpha, generator)
        if cut:
            image_BCHW = batch[self._names[0]].clone()
            height, width = image_BCHW.shape[-2:]
            top, bottom = _span(height, share, generator)
            left, right = _span(width, share, generator)
            image_BCHW[..., top:bottom, left:right] = image_BCHW.roll(1, 0)[..., top:bottom, left:right]
            mixed[self._names[0]] = image_BCHW
            share = 1 - (bottom - top) * (right - left) / (height * width)
        else:
            for name in self._names:
                mixed[name] = share * batch[name] + (1 - share) * batch[name].roll(1, 0)
        return mixed, share * target + (1 - share) * target.roll(1, 0)


class LabelAccuracy(MultilabelAccuracy):
    """The share of right labels, of logits (B, K)."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch: logits, and targets of zeros and ones (B, K)."""
        super().update(_given(preds, self.threshold), target.int())


class LabelF1Score(MultilabelF1Score):
    """The harmonic mean of precision and recall, of logits (B, K)."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch: logits, and targets of zeros and ones (B, K)."""
        super().update(_given(preds, self.threshold), target.int())


class LabelExactMatch(MultilabelExactMatch):
    """The share of samples of which all labels are right, of logits (B, K)."""

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch: logits, and targets of zeros and ones (B, K)."""
        super().update(_given(preds, self.threshold), target.int())


def _given(logits_BK: Tensor, threshold: float) -> Tensor:
    """Return zeros and ones (B, K), by the code that answers.

    torchmetrics would take logits that all happen to be in [0, 1] for probabilities.
    """
    chosen_BK = given(logits_BK.detach().float().cpu().numpy(), threshold)
    return torch.from_numpy(chosen_BK.astype(np.int64)).to(logits_BK.device)


def _focal(right: Tensor, gamma: float) -> Tensor:
    """Return (1 - p)^gamma; its gradient stays finite at p = 1, where that of a root has a pole."""
    return (1 - right).clamp(min=torch.finfo(right.dtype).eps) ** gamma


def _balanced(spec: DataSpec) -> Tensor:
    """Return (K,) weights: N / (K * count) for classes, negatives / positives for labels."""
    counts_K = torch.tensor(spec.counts, dtype=torch.float32)
    if not bool((counts_K > 0).all()):
        absent = [name for name, count in zip(spec.target.names, spec.counts, strict=True) if not count]
        raise CapabilityError(
            field="task.class_weights",
            problem="'balanced' needs every class in the training split; absent there",
            value=absent,
        )
    if spec.target.kind == "class":
        return counts_K.sum() / (len(counts_K) * counts_K)
    # Every label is a question of its own, so the rest of the training split are its negatives.
    return (spec.size - counts_K).clamp(min=1) / counts_K


def _beta(alpha: float, generator: torch.Generator) -> float:
    """Draw from Beta(alpha, alpha), keyed by ``generator`` (torch's own Beta reads the global state)."""
    seed = int(torch.randint(2**62, (), generator=generator))
    return float(np.random.default_rng(seed).beta(alpha, alpha))


def _span(size: int, share: float, generator: torch.Generator) -> tuple[int, int]:
    """Draw the box's side along one axis: sqrt(1 - share) of ``size`` around a uniform centre, clipped."""
    half = int(size * (1 - share) ** 0.5) // 2
    centre = int(torch.randint(size, (), generator=generator))
    return max(0, centre - half), min(size, centre + half)
