"""Matrix factorization for Bayesian personalized ranking (Rendle et al. 2009, arXiv:1205.2618)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from fmdist.contracts import DataSpec
from fmdist.errors import CapabilityError
from fmdist.models.base import ModelConfig
from fmdist.models.recommender import IdEmbedding, Recommender


class Config(ModelConfig):
    """Dot product of a user's and an item's vector plus the item's bias; made for the task's `loss: bpr`.

    A user has no bias: it would be the same for all items, and so change no ranking.
    """

    form: ClassVar[str] = "scores"

    factors: int = Field(default=64, ge=1)
    """Width of the vectors."""
    init_std: float = Field(default=0.1, gt=0)
    """Standard deviation of the vectors' initial values; the items' biases begin at 0."""

    def build(self, spec: DataSpec, outputs: int) -> BayesianRanking:
        """Return a recommender that reads the two ids, and no side features.

        Raises:
            CapabilityError: if the data's target is ratings.
        """
        if spec.target.kind == "value":
            raise CapabilityError(
                field="model.kind",
                problem="'bpr' ranks items, its scores are no ratings: users have no bias",
                fix="use 'matrix_factorization', or data.feedback 'implicit'",
            )
        return BayesianRanking(spec, self.factors, self.init_std)


class BayesianRanking(Recommender):
    """Shapes: B batch, W factors."""

    def __init__(self, spec: DataSpec, factors: int, init_std: float) -> None:
        super().__init__(spec)
        user, item = self.sides["user"][0], self.sides["item"][0]
        self.users = IdEmbedding(user, factors, init_std)
        self.items = IdEmbedding(item, factors, init_std)
        self.biases = IdEmbedding(item, 1, 0.0)

    def side(self, name: str, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the vectors (B, W) and the biases (B, 1), which are 0 for users."""
        if name == "user":
            users_BW = self.users(inputs[0])
            return users_BW, torch.zeros_like(users_BW[:, :1])
        return self.items(inputs[0]), self.biases(inputs[0])
