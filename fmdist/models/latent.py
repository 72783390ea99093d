"""Modules with a latent code: what the families of forms ``autoencoder`` and ``variational`` build.

Shapes: B batch, D values of an input, Z latent variables.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

Activation = Literal["relu", "gelu", "silu", "tanh"]

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


class Autoencoder(nn.Module):
    """A code per input, and back."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, latent: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.latent = latent

    def encode(self, x: Tensor) -> Tensor:
        """Return the code (B, Z) of inputs (B, ...)."""
        code_BZ: Tensor = self.encoder(x)
        return code_BZ

    def decode(self, code_BZ: Tensor) -> Tensor:
        """Return values of the inputs' shape."""
        values: Tensor = self.decoder(code_BZ)
        return values


class VariationalAutoencoder(nn.Module):
    """A normal distribution of codes per input, and back (Kingma & Welling 2013, arXiv:1312.6114)."""

    def __init__(self, encoder: nn.Module, decoder: nn.Module, latent: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.latent = latent

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean (B, Z) and the log variance (B, Z) of q(z|x) for inputs (B, ...)."""
        mean_BZ, log_variance_BZ = self.encoder(x).chunk(2, dim=1)
        return mean_BZ, log_variance_BZ

    def decode(self, code_BZ: Tensor) -> Tensor:
        """Return logits or means of p(x|z), of the inputs' shape."""
        values: Tensor = self.decoder(code_BZ)
        return values


def perceptron(widths: Sequence[int], activation: str) -> list[nn.Module]:
    """Return linear layers from ``widths[0]`` to ``widths[-1]`` with an activation between them."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), ACTIVATIONS[activation]()]
    return layers[:-1]
