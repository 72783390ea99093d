"""Autoencoder of fully connected layers, for images and tables (Hinton & Salakhutdinov 2006)."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar

from pydantic import Field
from torch import nn

from fmdist.contracts import DataSpec
from fmdist.models.base import ModelConfig, fixed_shape
from fmdist.models.latent import Activation, Autoencoder, perceptron


class Config(ModelConfig):
    """Encoder and decoder mirror each other; the code has no activation.

    Source: Hinton & Salakhutdinov 2006 (doi:10.1126/science.1127647).
    """

    form: ClassVar[str] = "autoencoder"

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (128,)
    """Units of the encoder's hidden layers, from the input on; empty for a linear autoencoder."""
    latent: int = Field(default=8, ge=1)
    """Numbers of a code."""
    activation: Activation = "gelu"
    """Activation after each hidden layer."""

    def build(self, spec: DataSpec, outputs: int) -> Autoencoder:
        """Return a module of the form ``autoencoder``; ``outputs`` is not used."""
        shape = fixed_shape(spec, self.kind())
        widths = [math.prod(shape), *self.hidden, self.latent]
        encoder = nn.Sequential(nn.Flatten(), *perceptron(widths, self.activation))
        decoder = nn.Sequential(*perceptron(widths[::-1], self.activation), nn.Unflatten(1, shape))
        return Autoencoder(encoder, decoder, self.latent)
