"""Small modern convolutional network: normalized 3 x 3 blocks, global average pooling."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from fmdist.contracts import DataSpec
from fmdist.models.base import ModelConfig, image_input


class Config(ModelConfig):
    """Stages of 3 x 3 convolutions; each stage but the first halves height and width.

    Sources: Simonyan & Zisserman 2015 (arXiv:1409.1556); Ioffe & Szegedy 2015 (arXiv:1502.03167);
    Lin et al. 2014 (arXiv:1312.4400) for the pooled head.
    """

    channels: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(32, 64, 128), min_length=1)
    """Channels of each stage."""
    blocks: int = Field(default=2, ge=1)
    """Convolutions per stage."""
    norm: Literal["batch", "group"] = "batch"
    """Normalization after each convolution; `group` (8 groups) is exact under distribution."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of zeroing a pooled feature in training."""

    def build(self, spec: DataSpec, outputs: int) -> nn.Sequential:
        """Return a module from (B, C, H, W) to (B, outputs)."""
        width, _, _ = image_input(spec, self.kind(), smallest=2 ** (len(self.channels) - 1))
        layers: list[nn.Module] = []
        for stage, channels in enumerate(self.channels):
            if stage:
                layers.append(nn.MaxPool2d(2))
            for _ in range(self.blocks):
                layers += [
                    nn.Conv2d(width, channels, 3, padding=1, bias=False),
                    self._norm(channels),
                    nn.ReLU(),
                ]
                width = channels
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(self.dropout), nn.Linear(width, outputs)]
        return nn.Sequential(*layers)

    def _norm(self, channels: int) -> nn.Module:
        if self.norm == "batch":
            return nn.BatchNorm2d(channels)
        return nn.GroupNorm(8 if channels % 8 == 0 else 1, channels)
