"""Two towers: a network for users and one for items (Yi et al. 2019, doi:10.1145/3298689.3346996).

Earlier with one tower: Covington et al. 2016, doi:10.1145/2959100.2959190.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fmdist.contracts import DataSpec
from fmdist.models.base import ModelConfig
from fmdist.models.recommender import IdEmbedding, Recommender


class Config(ModelConfig):
    """A small network per side, over the id's and the features' embeddings; the score is a scaled cosine."""

    form: ClassVar[str] = "scores"

    embedding: int = Field(default=64, ge=1)
    """Width of the embedding of an id, and of each side feature."""
    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (128,)
    """Units of each hidden layer of a tower."""
    width: int = Field(default=64, ge=1)
    """Width of the towers' outputs."""
    temperature: float = Field(default=0.1, gt=0)
    """The cosine, in [-1, 1], is divided by this."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of zeroing an embedded value or a hidden unit in training."""

    def build(self, spec: DataSpec, outputs: int) -> TwoTower:
        """Return a recommender that reads the two ids and all side features."""
        return TwoTower(self, spec)


class TwoTower(Recommender):
    """Shapes: B batch, W width of the towers' outputs."""

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__(spec)
        self._temperature = config.temperature
        self.embeddings, self.towers = nn.ModuleDict(), nn.ModuleDict()
        for name, inputs in self.sides.items():
            self.embeddings[name] = nn.ModuleList(IdEmbedding(item, config.embedding, 0.1) for item in inputs)
            self.towers[name] = _tower(config, len(inputs) * config.embedding)
        # Ratings are centred on their mean, which a cosine alone can't follow per item.
        self.biases = nn.ModuleDict(
            {name: IdEmbedding(inputs[0], 1, 0.0) for name, inputs in self.sides.items()}
        )

    def side(self, name: str, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the towers' outputs (B, W), of length 1 / sqrt(temperature), and the biases (B, 1)."""
        parts = zip(self.embeddings[name].children(), inputs, strict=True)
        outputs_BW = self.towers[name](torch.cat([part(ids) for part, ids in parts], dim=1))
        scaled_BW = functional.normalize(outputs_BW, dim=1) * self._temperature**-0.5
        return scaled_BW, self.biases[name](inputs[0])


def _tower(config: Config, width: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Dropout(config.dropout)]
    for units in config.hidden:
        layers += [nn.Linear(width, units), nn.ReLU(), nn.Dropout(config.dropout)]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, config.width))
