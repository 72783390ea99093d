"""Variational autoencoder of fully connected layers, for images and tables (Kingma & Welling 2013)."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

from pydantic import Field
from torch import nn

from fmdist.contracts import DataSpec
from fmdist.models.base import ModelConfig, fixed_shape
from fmdist.models.latent import Activation, VariationalAutoencoder, perceptron


class Config(ModelConfig):
    """Encoder and decoder mirror each other (Kingma & Welling 2013, arXiv:1312.6114)."""

    form: ClassVar[str] = "variational"

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (256, 128)
    """Units of the encoder's hidden layers, from the input on."""
    latent: int = Field(default=8, ge=1)
    """Latent variables."""
    activation: Activation = "gelu"
    """Activation after each hidden layer."""

    def build(self, spec: DataSpec, outputs: int) -> VariationalAutoencoder:
        """Return a module of the form ``variational``; ``outputs`` is not used."""
        shape = fixed_shape(spec, self.kind())
        widths = [math.prod(shape), *self.hidden]
        encoder = perceptron([*widths, 2 * self.latent], self.activation)
        decoder = perceptron([self.latent, *widths[::-1]], self.activation)
        return VariationalAutoencoder(
            nn.Sequential(nn.Flatten(), *encoder),
            nn.Sequential(*decoder, nn.Unflatten(1, shape)),
            self.latent,
        )
