"""LeNet-5, with ReLU and max pooling as it is trained today."""

from __future__ import annotations

from pydantic import Field
from torch import nn

from fmdist.contracts import DataSpec
from fmdist.models.base import ModelConfig, image_input


class Config(ModelConfig):
    """Two 5 x 5 convolutions and three linear layers (LeCun et al. 1998, doi:10.1109/5.726791).

    The original reads 32 x 32; smaller images are padded to what both pooling steps need.
    """

    width: int = Field(default=1, ge=1)
    """Multiplies every layer's size; 1 is the paper's."""

    def build(self, spec: DataSpec, outputs: int) -> nn.Sequential:
        """Return a module from (B, C, H, W) to (B, outputs)."""
        channels, height, width = image_input(spec, self.kind(), smallest=8)
        side = min(height, width)
        pad = 0 if side >= 32 else 2 if side >= 28 else 4
        after = [((size + 2 * pad - 4) // 2 - 4) // 2 for size in (height, width)]
        n = self.width
        return nn.Sequential(
            nn.Conv2d(channels, 6 * n, 5, padding=pad),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6 * n, 16 * n, 5),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * n * after[0] * after[1], 120 * n),
            nn.ReLU(),
            nn.Linear(120 * n, 84 * n),
            nn.ReLU(),
            nn.Linear(84 * n, outputs),
        )
