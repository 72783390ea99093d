"""Convolutional variational autoencoder for images (Kingma & Welling 2013)."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field
from torch import nn

from fmdist.contracts import DataSpec
from fmdist.models.base import ModelConfig, image_input
from fmdist.models.latent import ACTIVATIONS, Activation, VariationalAutoencoder, perceptron
from fmdist.models.pyramid import doubling, halving, sizes


class Config(ModelConfig):
    """Stride-2 convolutions and a hidden layer to the code; the same way back with transposed ones.

    Source: Kingma & Welling 2013 (arXiv:1312.6114).
    """

    form: ClassVar[str] = "variational"

    channels: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(32, 64), min_length=1)
    """Channels after each halving of height and width."""
    hidden: int = Field(default=256, ge=1)
    """Units between the convolutions and the code, on either side."""
    latent: int = Field(default=8, ge=1)
    """Latent variables."""
    activation: Activation = "gelu"
    """Activation after each layer but the last."""

    def build(self, spec: DataSpec, outputs: int) -> VariationalAutoencoder:
        """Return a module of the form ``variational``; ``outputs`` is not used."""
        halvings = len(self.channels)
        depth, height, width = image_input(spec, self.kind(), smallest=2**halvings)
        places = sizes(height, width, halvings)
        channels = [depth, *self.channels]
        top = (channels[-1], *places[-1])
        flat = top[0] * top[1] * top[2]
        activation = ACTIVATIONS[self.activation]
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for step in range(halvings):
            down += [halving(channels[step], channels[step + 1]), activation()]
            up = [activation(), doubling(channels[step + 1], channels[step], places[step]), *up]
        encoder = [*down, nn.Flatten(), *perceptron([flat, self.hidden, 2 * self.latent], self.activation)]
        decoder = [*perceptron([self.latent, self.hidden, flat], self.activation), nn.Unflatten(1, top), *up]
        return VariationalAutoencoder(nn.Sequential(*encoder), nn.Sequential(*decoder), self.latent)
