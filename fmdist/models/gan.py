"""Deep convolutional generator and discriminator (DCGAN, Radford et al. 2015).

Shapes: B batch, C channels, H height, W width, Z latent variables.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field
from torch import nn

from fmdist.contracts import DataSpec
from fmdist.models.base import ModelConfig, image_input
from fmdist.models.pyramid import doubling, halving, sizes

SLOPE = 0.2
"""Of the discriminator's leaky ReLU, as published."""


class Config(ModelConfig):
    """Transposed convolutions from noise to images, and strided ones from images to a score.

    Source: Radford et al. 2015 (arXiv:1511.06434). Unlike there, the discriminator has no batch
    normalization: it sees real and generated images in one batch, and must judge each by itself.
    """

    form: ClassVar[str] = "adversaries"

    latent: int = Field(default=32, ge=1)
    """Normal variables that an image is made from."""
    channels: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(128, 64, 32), min_length=2)
    """Channels of the generator at each resolution, each twice the one before; the discriminator's mirror
    them."""
    norm: Literal["batch", "group"] = "batch"
    """Normalization in the generator; `group` (groups of 8 channels) is exact under distribution."""
    discriminator_norm: Literal["none", "group"] = "group"
    """Normalization in the discriminator."""
    output: Literal["linear", "sigmoid"] = "linear"
    """How the generator ends: `sigmoid` for pixels in [0, 1], which needs data.normalize false."""

    def build(self, spec: DataSpec, outputs: int) -> Adversaries:
        """Return a module of the form ``adversaries``; ``outputs`` is not used."""
        doublings = len(self.channels) - 1
        shape = image_input(spec, self.kind(), smallest=2**doublings)
        places = sizes(shape[1], shape[2], doublings)
        generator = self._generator(shape[0], places[::-1])
        discriminator = self._discriminator(shape[0], places)
        return Adversaries(generator, discriminator, self.latent, bounded=self.output == "sigmoid")

    def _generator(self, depth: int, places: list[tuple[int, int]]) -> nn.Sequential:
        width = self.channels[0]
        start = (width, *places[0])
        layers: list[nn.Module] = [
            nn.Linear(self.latent, start[0] * start[1] * start[2], bias=False),
            nn.Unflatten(1, start),
            self._norm(width),
            nn.ReLU(),
        ]
        for channels, place in zip(self.channels[1:], places[1:], strict=True):
            layers += [doubling(width, channels, place, bias=False), self._norm(channels), nn.ReLU()]
            width = channels
        layers.append(nn.Conv2d(width, depth, 3, padding=1))
        return nn.Sequential(*layers, nn.Sigmoid()) if self.output == "sigmoid" else nn.Sequential(*layers)

    def _discriminator(self, depth: int, places: list[tuple[int, int]]) -> nn.Sequential:
        width = self.channels[-1]
        layers: list[nn.Module] = [nn.Conv2d(depth, width, 3, padding=1), nn.LeakyReLU(SLOPE)]
        for channels in self.channels[-2::-1]:
            layers.append(halving(width, channels))
            if self.discriminator_norm == "group":
                layers.append(_groups(channels))
            layers.append(nn.LeakyReLU(SLOPE))
            width = channels
        height, breadth = places[-1]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * height * breadth, 1))

    def _norm(self, channels: int) -> nn.Module:
        return nn.BatchNorm2d(channels) if self.norm == "batch" else _groups(channels)


class Adversaries(nn.ModuleDict):
    """``generator``: noise (B, Z) to images (B, C, H, W); ``discriminator``: images to scores (B, 1)."""

    def __init__(self, generator: nn.Module, discriminator: nn.Module, latent: int, bounded: bool) -> None:
        super().__init__({"generator": generator, "discriminator": discriminator})
        self.latent = latent
        self.bounded = bounded
        """Whether the generator's values are in [0, 1]."""


def _groups(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(channels // 8 if channels % 8 == 0 else 1, channels)
