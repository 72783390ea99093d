"""Recommendation: predict ratings, or rank items by implicit feedback.

Shapes: B batch, M sampled negatives of a pair, I items, N samples, K answers of a ranking.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fmdist.contracts import Batch, Dataset, DataSpec, Draw, LossOut, ModelBuilder, Roles
from fmdist.errors import CapabilityError
from fmdist.metrics import MeanAbsoluteError, MeanSquaredError, MetricCollection
from fmdist.tasks import decoding
from fmdist.tasks.base import TASK_HINT, OneModelTask, TaskConfig, choose_primary
from fmdist.tasks.ranking import NDCG, HitRate, Recall

_USER_REG, _ITEM_REG, _ROUNDS = 15.0, 10.0, 10
"""Shrinkage of the bias baseline and rounds of its alternating least squares, as scikit-surprise has them."""


class Config(TaskConfig):
    """What is learned follows from the data: ratings by squared error, implicit feedback by ranking.

    Rankings are scored over all items that a user hasn't met, never over a sample of them (Krichene & Rendle
    2020, doi:10.1145/3394486.3403226).
    """

    needs: ClassVar[str] = "scores"

    loss: Literal["bce", "bpr", "softmax"] | None = None
    """Implicit feedback, an interaction against its sampled negatives: binary cross-entropy (He et al. 2017,
    arXiv:1708.05031), pairwise (Rendle et al. 2009, arXiv:1205.2618), or softmax (Covington et al. 2016,
    doi:10.1145/2959100.2959190). Null is bpr; ratings have no choice."""
    top: int = Field(default=10, ge=1)
    """Implicit feedback: how many items are answered, and counted by the metrics `ndcg_10`, `hr_10`,
    `recall_10` (named after this number)."""
    primary: str | None = None
    """Metric that chooses the best checkpoint; by default rmse for ratings, ndcg for implicit feedback."""

    def build(self, spec: DataSpec, model: ModelBuilder) -> RatingPrediction | Ranking:
        """Return the task; see `TaskConfig.build`."""
        if not {"user", "item"} <= {item.name for item in spec.inputs}:
            raise CapabilityError(
                field="task.kind",
                problem="'recommendation' learns from users and items and the data has none",
                value=[item.name for item in spec.inputs],
                fix=f"use data.kind 'interactions'; {TASK_HINT}",
            )
        if spec.target.kind == "items":
            return Ranking(self, spec, model.build(spec, 1))
        if self.loss is not None:
            raise CapabilityError(
                field="task.loss",
                problem="ratings are learned by squared error",
                value=self.loss,
                fix="remove it, or set data.feedback to implicit",
            )
        return RatingPrediction(self, spec, Centred(model.build(spec, 1), *spec.moments[0]))


class Centred(nn.Module):
    """A model whose scores are scaled to ratings: 0 is their mean, in its exports too."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: float, std: float) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std or 1.0))

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return ratings (B, 1)."""
        ratings_B1: Tensor = self.model(*inputs) * self.std + self.mean
        return ratings_B1


class RatingPrediction(OneModelTask):
    """Targets float32 (B, 1)."""

    def __init__(self, config: Config, spec: DataSpec, model: Centred) -> None:
        super().__init__(spec, model)
        self._std = spec.moments[0][1] or 1.0
        self.primary = choose_primary(config.primary or "rmse", {"rmse": "min", "mae": "min"})

    def loss(self, roles: Roles, batch: Batch, generator: torch.Generator) -> LossOut:
        """Return the squared error in standard deviations of the ratings, summed over pairs."""
        error_B1 = (self.outputs(roles, batch) - batch["target"]) / self._std
        return LossOut(error_B1.square().sum(), len(error_B1))

    def metrics(self) -> MetricCollection:
        """Return RMSE and MAE, in the ratings' unit."""
        metrics = {"rmse": MeanSquaredError(squared=False), "mae": MeanAbsoluteError()}
        return MetricCollection(dict(metrics), compute_groups=False)

    def decoding(self) -> dict[str, Any]:
        """Return the rule that keeps ratings within their range."""
        limits = self.spec.target.range
        return {
            "rule": "rate",
            "inputs": [item.name for item in self.inputs],
            "range": None if limits is None else list(limits),
        }

    def baseline(self, train: Dataset, part: Dataset) -> NDArray[np.float32]:
        """Return the mean rating plus a shrunk bias of the user and of the item, (N, 1); see `biases`."""
        known, asked = _everything(train), _everything(part)
        sizes = [item.size for item in self.spec.inputs if item.name in ("user", "item")]
        ratings = train.targets[:, 0].astype(np.float64)
        user_bias, item_bias = biases(known["user"], known["item"], ratings, (sizes[0], sizes[1]))
        predicted = ratings.mean() + user_bias[asked["user"]] + item_bias[asked["item"]]
        run = lambda inputs: predicted[:, None].astype(np.float32)  # noqa: E731
        return decoding.rows(self.decoding(), run, asked, len(part))


class Ranking(OneModelTask):
    """Targets int64 (B, L): positions of wanted items, padded with -1; in training (B, 1), the item."""

    def __init__(self, config: Config, spec: DataSpec, model: nn.Module) -> None:
        super().__init__(spec, model)
        self.inputs = tuple(item for item in spec.inputs if item.name.partition(".")[0] == "user")
        self._items = [item.name for item in spec.inputs if item not in self.inputs]
        self._loss = LOSSES[config.loss or "bpr"]
        self._top = min(config.top, spec.target.size)
        names = {"ndcg": NDCG, "hr": HitRate, "recall": Recall}
        self._metrics = {f"{name}_{config.top}": metric for name, metric in names.items()}
        self.primary = choose_primary(
            config.primary or f"ndcg_{config.top}", dict.fromkeys(self._metrics, "max")
        )

    def count(self, batch: Batch) -> float:
        """Return the number of interactions."""
        return len(batch["index"])

    def loss(self, roles: Roles, batch: Batch, generator: torch.Generator) -> LossOut:
        """Return the loss of interactions against their negatives, summed over interactions."""
        negatives = batch["negative"].shape[1]
        users = [batch[item.name].repeat_interleave(1 + negatives, dim=0) for item in self.inputs]
        items = [
            torch.cat([batch[name][:, None], batch[name.replace("item", "negative", 1)]], dim=1).flatten(0, 1)
            for name in self._items
        ]
        scores_BM: Tensor = roles["model"](*users, *items).view(-1, 1 + negatives)
        losses_B = self._loss(scores_BM)
        return LossOut(losses_B.sum(), len(losses_B))

    def served(self, roles: Roles) -> nn.Module:
        """Return the module from users to scores of all items, (B, I)."""
        return Ranker(roles["model"])

    def metrics(self) -> MetricCollection:
        """Return NDCG, hit rate and recall of the first `top` answers."""
        return MetricCollection(
            {name: metric(self._top) for name, metric in self._metrics.items()}, compute_groups=False
        )

    def decoding(self) -> dict[str, Any]:
        """Return the rule that names the best items which a user hasn't seen."""
        names = list(self.spec.target.names)
        return {"rule": "rank", "inputs": [i.name for i in self.inputs], "names": names, "top": self._top}

    def baseline(self, train: Dataset, part: Dataset) -> NDArray[np.float32]:
        """Return for every user the most popular items of the training split that the user hasn't seen."""
        popularity_I = np.bincount(train.targets[:, 0], minlength=self.spec.target.size).astype(np.float32)
        run = lambda inputs: np.tile(popularity_I, (len(inputs["user"]), 1))  # noqa: E731
        return decoding.rows(self.decoding(), run, _everything(part))


class Ranker(nn.Module):
    """What is served of a recommender where items are ranked."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *users: Tensor) -> Tensor:
        """Return scores of all items, (B, I)."""
        scores_BI: Tensor = self.model.rank(*users)  # type: ignore[operator]
        return scores_BI


def binary_cross_entropy(scores_BM: Tensor) -> Tensor:
    """Return (B,) losses, means over the interaction (first column) and its negatives, each a yes or no."""
    wanted_BM = torch.zeros_like(scores_BM)
    wanted_BM[:, 0] = 1
    return functional.binary_cross_entropy_with_logits(scores_BM, wanted_BM, reduction="none").mean(dim=1)


def bayesian_pairwise(scores_BM: Tensor) -> Tensor:
    """Return (B,) losses, -log sigmoid of the interaction's lead (first column), means over the negatives."""
    return -functional.logsigmoid(scores_BM[:, :1] - scores_BM[:, 1:]).mean(dim=1)


def sampled_softmax(scores_BM: Tensor) -> Tensor:
    """Return (B,) losses, -log of the interaction's share (first column) among itself and its negatives."""
    return -scores_BM.log_softmax(dim=1)[:, 0]


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "bce": binary_cross_entropy,
    "bpr": bayesian_pairwise,
    "softmax": sampled_softmax,
}
"""The choices of ``task.loss``."""


def biases(
    users_N: NDArray[np.int64], items_N: NDArray[np.int64], ratings_N: NDArray[Any], sizes: tuple[int, int]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a bias per user and per item: alternating least squares, shrunk towards 0.

    Source: Koren 2010 (doi:10.1145/1644873.1644874), section 2.1, with scikit-surprise's constants.
    """
    rest_N = ratings_N - ratings_N.mean()
    user_bias, item_bias = np.zeros(sizes[0]), np.zeros(sizes[1])
    user_count, item_count = (
        np.bincount(users_N, minlength=sizes[0]),
        np.bincount(items_N, minlength=sizes[1]),
    )
    for _ in range(_ROUNDS):
        left_N = rest_N - user_bias[users_N]
        item_bias = np.bincount(items_N, left_N, minlength=sizes[1]) / (_ITEM_REG + item_count)
        left_N = rest_N - item_bias[items_N]
        user_bias = np.bincount(users_N, left_N, minlength=sizes[0]) / (_USER_REG + user_count)
    return user_bias, item_bias


def _everything(part: Dataset) -> dict[str, NDArray[Any]]:
    return {name: value.numpy() for name, value in part.__getitems__(Draw(0, np.arange(len(part)))).items()}
