"""MobileNet: depthwise-separable convolutions, torchvision's versions 2 and 3.

Shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fmdist.contracts import DataSpec
from fmdist.models.base import ModelConfig, image_input

REQUIRES = ("vision",)

HALVINGS = 5
"""How often the networks halve an image's sides."""


class Config(ModelConfig):
    """Sandler et al. 2018 (arXiv:1801.04381) and Howard et al. 2019 (arXiv:1905.02244).

    Version 3 adds hard swish and squeeze-and-excitation, whose layers stay in float in INT8. Images below 32
    pixels a side are enlarged.
    """

    version: Literal["v2", "v3_small", "v3_large"] = "v2"
    """Of the architecture."""
    width: float = Field(default=0.5, gt=0, le=4)
    """Multiplies the channels of every layer, rounded to multiples of 8; 1 is the papers'."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Probability of zeroing a pooled feature in training."""

    def build(self, spec: DataSpec, outputs: int) -> nn.Module:
        """Return a module from (B, C, H, W) to (B, outputs)."""
        channels, height, width = image_input(spec, self.kind(), smallest=8)
        import torchvision

        make = getattr(torchvision.models, f"mobilenet_{self.version}")
        # Version 3's momentum of 0.01 is for long training: in a short one the statistics would lag behind.
        norm = partial(nn.BatchNorm2d, eps=1e-3 if self.version != "v2" else 1e-5)
        net: nn.Module = make(
            weights=None, num_classes=outputs, width_mult=self.width, dropout=self.dropout, norm_layer=norm
        )
        first = net.get_submodule("features.0.0")
        assert isinstance(first, nn.Conv2d)
        new = nn.Conv2d(channels, first.out_channels, 3, stride=2, padding=1, bias=False)
        nn.init.kaiming_normal_(new.weight, mode="fan_out")
        net.set_submodule("features.0.0", new)
        factor = 2**HALVINGS / min(height, width)
        return Enlarging(net, (round(height * factor), round(width * factor))) if factor > 1 else net


class Enlarging(nn.Module):
    """A network that sees its images enlarged to ``size``, bilinear."""

    def __init__(self, net: nn.Module, size: tuple[int, int]) -> None:
        super().__init__()
        self.net = net
        self.size = size

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Return logits (B, outputs)."""
        enlarged_BCHW = functional.interpolate(image_BCHW, self.size, mode="bilinear", align_corners=False)
        logits: Tensor = self.net(enlarged_BCHW)
        return logits
