"""Neural collaborative filtering, NeuMF (He et al. 2017, arXiv:1708.05031)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from fmdist.contracts import DataSpec
from fmdist.models.base import ModelConfig
from fmdist.models.recommender import IdEmbedding, Recommender


class Config(ModelConfig):
    """A factorization with weighted products, a network on other embeddings, and a layer that joins them."""

    form: ClassVar[str] = "scores"

    factors: int = Field(default=32, ge=1)
    """Width of the embeddings of the factorization."""
    embedding: int = Field(default=32, ge=1)
    """Width of the embeddings that the network reads."""
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(64, 32, 16), min_length=1)
    """Units of each hidden layer of the network."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of zeroing a hidden unit in training."""
    init_std: float = Field(default=0.05, gt=0)
    """Standard deviation of the embeddings' initial values."""

    def build(self, spec: DataSpec, outputs: int) -> NeuralFiltering:
        """Return a recommender that reads the two ids, and no side features."""
        return NeuralFiltering(self, spec)


class NeuralFiltering(Recommender):
    """Shapes: B batch, I items, W factors, H units of the first hidden layer, U of the last."""

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__(spec)
        ids = {name: inputs[0] for name, inputs in self.sides.items()}
        first, *rest = config.hidden
        self.factors = nn.ModuleDict(
            {name: IdEmbedding(item, config.factors, config.init_std) for name, item in ids.items()}
        )
        self.embeddings = nn.ModuleDict(
            {name: IdEmbedding(item, config.embedding, config.init_std) for name, item in ids.items()}
        )
        # The first layer on a concatenation is a sum of one layer per part: a catalogue's part is done once.
        self.first = nn.ModuleDict(
            {name: nn.Linear(config.embedding, first, bias=name == "item") for name in ids}
        )
        layers: list[nn.Module] = [nn.ReLU(), nn.Dropout(config.dropout)]
        for before, units in zip(config.hidden, rest, strict=False):
            layers += [nn.Linear(before, units), nn.ReLU(), nn.Dropout(config.dropout)]
        self.network = nn.Sequential(*layers)
        self.output = nn.Linear(config.factors + config.hidden[-1], 1)

    def side(self, name: str, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the factors (B, W), and the side's part of the first hidden layer (B, H)."""
        return self.factors[name](inputs[0]), self.first[name](self.embeddings[name](inputs[0]))

    def score_pairs(self, user: tuple[Tensor, ...], item: tuple[Tensor, ...]) -> Tensor:
        """Return scores (B, 1)."""
        (user_BW, user_BH), (item_BW, item_BH) = user, item
        joined = torch.cat([user_BW * item_BW, self.network(user_BH + item_BH)], dim=-1)
        scores: Tensor = self.output(joined)
        return scores

    def score_all(self, user: tuple[Tensor, ...], item: tuple[Tensor, ...]) -> Tensor:
        """Return scores (B, I); every pair goes through the network: B x I x H numbers of memory."""
        (user_BW, user_BH), (item_IW, item_IH) = user, item
        pairs = (user_BW[:, None], user_BH[:, None]), (item_IW[None], item_IH[None])
        return self.score_pairs(*pairs).squeeze(-1)
