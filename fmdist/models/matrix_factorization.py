"""Matrix factorization with biases (Koren, Bell & Volinsky 2009, doi:10.1109/MC.2009.263)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from fmdist.contracts import DataSpec
from fmdist.models.base import ModelConfig
from fmdist.models.recommender import IdEmbedding, Recommender


class Config(ModelConfig):
    """A user and an item are vectors; their score is the dot product plus a bias each.

    The mean of all ratings, also part of Koren's model, is the task's.
    """

    form: ClassVar[str] = "scores"

    factors: int = Field(default=64, ge=1)
    """Width of the vectors."""
    init_std: float = Field(default=0.1, gt=0)
    """Standard deviation of the vectors' initial values; the biases begin at 0."""

    def build(self, spec: DataSpec, outputs: int) -> MatrixFactorization:
        """Return a recommender that reads the two ids, and no side features."""
        return MatrixFactorization(spec, self.factors, self.init_std)


class MatrixFactorization(Recommender):
    """Shapes: B batch, W factors."""

    def __init__(self, spec: DataSpec, factors: int, init_std: float) -> None:
        super().__init__(spec)
        ids = {name: inputs[0] for name, inputs in self.sides.items()}
        self.vectors = nn.ModuleDict(
            {name: IdEmbedding(item, factors, init_std) for name, item in ids.items()}
        )
        self.biases = nn.ModuleDict({name: IdEmbedding(item, 1, 0.0) for name, item in ids.items()})

    def side(self, name: str, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the vectors (B, W) and the biases (B, 1)."""
        return self.vectors[name](inputs[0]), self.biases[name](inputs[0])
