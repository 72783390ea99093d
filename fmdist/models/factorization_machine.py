"""Factorization machine over ids and side features (Rendle 2010, doi:10.1109/ICDM.2010.127)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from fmdist.contracts import DataSpec
from fmdist.models.base import ModelConfig
from fmdist.models.recommender import IdEmbedding, Recommender


class Config(ModelConfig):
    """Every id and category has a weight and a vector; all pairs of them interact by their dot product."""

    form: ClassVar[str] = "scores"

    factors: int = Field(default=32, ge=1)
    """Width of the vectors."""
    init_std: float = Field(default=0.05, gt=0)
    """Standard deviation of the vectors' initial values; the weights begin at 0."""

    def build(self, spec: DataSpec, outputs: int) -> FactorizationMachine:
        """Return a recommender that reads the two ids and all side features."""
        return FactorizationMachine(spec, self.factors, self.init_std)


class FactorizationMachine(Recommender):
    """Shapes: B batch, W factors, F fields of a side, C ids and categories of a side, L ids of a list."""

    def __init__(self, spec: DataSpec, factors: int, init_std: float) -> None:
        super().__init__(spec)
        self.vectors, self.weights = nn.ModuleDict(), nn.ModuleDict()
        for name, inputs in self.sides.items():
            self.vectors[name] = nn.ModuleList(IdEmbedding(item, factors, init_std) for item in inputs)
            self.weights[name] = nn.ModuleList(IdEmbedding(item, 1, 0.0) for item in inputs)
        self.constant = nn.Parameter(torch.zeros(1))

    def side(self, name: str, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the sum of a side's vectors (B, W), and (B, 1) all that only concerns this side.

        The pairs within one side, those within a list too, are half of |sum|^2 - sum of |.|^2 (Rendle's
        lemma); those across the sides are the dot product of the two sums, so that a whole catalogue is
        ranked by one matrix product.
        """
        vectors_BCW = torch.cat(
            [_each(part, ids) for part, ids in self._fields(self.vectors[name], inputs)], 1
        )
        weights_FB1 = torch.stack([part(ids) for part, ids in self._fields(self.weights[name], inputs)])
        sum_BW = vectors_BCW.sum(dim=1)
        within_B1 = 0.5 * (sum_BW.square() - vectors_BCW.square().sum(dim=1)).sum(dim=1, keepdim=True)
        own_B1 = weights_FB1.sum(dim=0) + within_B1
        return sum_BW, own_B1 + self.constant if name == "item" else own_B1

    def _fields(self, parts: nn.Module, inputs: Sequence[Tensor]) -> list[tuple[nn.Module, Tensor]]:
        return list(zip(parts.children(), inputs, strict=True))


def _each(part: nn.Module, ids: Tensor) -> Tensor:
    """Return the vector of each id, (B, 1, W) for ids (B,) and (B, L, W) for lists (B, L); padding's is 0."""
    if ids.dim() == 1:
        found: Tensor = part(ids)
        return found[:, None]
    # The module sums a list, so it is asked for lists of one.
    singles: Tensor = part(ids.reshape(-1, 1))
    return singles.reshape(-1, ids.shape[1], singles.shape[1])
