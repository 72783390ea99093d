"""Multi-layer perceptron on flattened inputs."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from fmdist.contracts import DataSpec
from fmdist.models.base import ModelConfig, fixed_shape

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


class Config(ModelConfig):
    """Fully connected layers with an activation, optional normalization and dropout between them."""

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (128, 64)
    """Units of each hidden layer; empty for a linear model."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    """Activation after each hidden layer."""
    norm: Literal["none", "batch", "layer"] = "none"
    """Normalization before each activation."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of zeroing a hidden unit in training."""

    def build(self, spec: DataSpec, outputs: int) -> nn.Sequential:
        """Return a module from (B, ...) through flattening to (B, outputs)."""
        layers: list[nn.Module] = [nn.Flatten()]
        width = math.prod(fixed_shape(spec, self.kind()))
        for units in self.hidden:
            layers.append(nn.Linear(width, units))
            if self.norm != "none":
                layers.append(nn.BatchNorm1d(units) if self.norm == "batch" else nn.LayerNorm(units))
            layers.append(ACTIVATIONS[self.activation]())
            if self.dropout:
                layers.append(nn.Dropout(self.dropout))
            width = units
        return nn.Sequential(*layers, nn.Linear(width, outputs))
