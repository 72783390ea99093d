"""What the kinds share that take their architecture from torchvision: other widths, other images.

The layers keep torchvision's names, so that its state dicts fit wherever the sizes are the same.
Shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fmdist.models.base import ModelConfig, image_input

if TYPE_CHECKING:
    from fmdist.contracts import DataSpec

logger = logging.getLogger(__name__)

PAPER_WIDTH = 64
"""Channels of the first convolution in AlexNet, VGG and GoogLeNet alike."""
SMALLEST = 8
"""Pixels a side below which enlarging an image is no use."""


class TorchvisionConfig(ModelConfig):
    """The settings that such kinds share; 32 pixels a side survive the five halvings of VGG and GoogLeNet."""

    width: int = Field(default=PAPER_WIDTH, ge=4, multiple_of=4)
    """Channels of the first convolution; every other layer but the last grows and shrinks with it. 64: the
    paper's network; 16 is a sixteenth of its weights and enough for small images."""
    upscale_to: int = Field(default=32, ge=32)
    """Pixels of the shorter side up to which smaller images are enlarged, bilinear, inside the model."""

    def image_size(self, spec: DataSpec) -> tuple[int, tuple[int, int]]:
        """Return the channels, and the height and width after enlarging.

        Raises:
            CapabilityError: if the data isn't images, or they have fewer than 8 pixels a side.
        """
        channels, height, width = image_input(spec, self.kind(), smallest=SMALLEST)
        factor = max(1.0, self.upscale_to / min(height, width))
        return channels, (round(height * factor), round(width * factor))


class UpscalingConv2d(nn.Conv2d):
    """A convolution that first enlarges its input: as the first layer, it adds no name to the state dict."""

    size: tuple[int, int]

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Return the convolution of the images enlarged to `size`, bilinear."""
        enlarged_BCHW = functional.interpolate(image_BCHW, self.size, mode="bilinear", align_corners=False)
        return super().forward(enlarged_BCHW)


def built(net: nn.Module, config: TorchvisionConfig, spec: DataSpec, outputs: int) -> nn.Module:
    """Replace the layers of ``net``, made on the meta device, by real ones of the configured sizes.

    They are in torch's default initialization, drawn in the order of the layers.
    """
    channels, size = config.image_size(spec)
    names = [name for name, layer in net.named_modules() if hasattr(layer, "weight")]
    for name in names:
        layer = net.get_submodule(name)
        old: Any = layer
        new: nn.Module
        if isinstance(layer, nn.Conv2d):
            incoming = channels if name == names[0] else _scaled(old.in_channels, config.width)
            outgoing = _scaled(old.out_channels, config.width)
            kind = UpscalingConv2d if name == names[0] and size != spec.inputs[0].shape[1:] else nn.Conv2d
            new = kind(
                incoming, outgoing, old.kernel_size, old.stride, old.padding, bias=old.bias is not None
            )
            if isinstance(new, UpscalingConv2d):
                new.size = size
                logger.info("%s enlarges the images to %d x %d", config.kind(), *size)
        elif isinstance(layer, nn.BatchNorm2d):
            new = nn.BatchNorm2d(_scaled(old.num_features, config.width), eps=old.eps)
        else:
            outgoing = outputs if name == names[-1] else _scaled(old.out_features, config.width)
            new = nn.Linear(_scaled(old.in_features, config.width), outgoing)
        net.set_submodule(name, new)
    return net


def fit_pooling(net: Any, size: tuple[int, int]) -> None:
    """Make the grid that AlexNet and VGG pool to no finer than the features of an image of ``size``.

    Otherwise small images would fill the first linear layer with copies of the same features.

    Args:
        net: on the meta device; its grid and its first linear layer are changed.
        size: height and width of the images, in pixels.
    """
    features = net.features(torch.empty(1, 3, *size, device="meta"))
    grid = tuple(
        min(wanted, side) for wanted, side in zip(net.avgpool.output_size, features.shape[2:], strict=True)
    )
    net.avgpool = nn.AdaptiveAvgPool2d(grid)
    position = next(i for i, layer in enumerate(net.classifier) if isinstance(layer, nn.Linear))
    incoming = features.shape[1] * grid[0] * grid[1]
    net.classifier[position] = nn.Linear(incoming, net.classifier[position].out_features, device="meta")


def _scaled(size: int, width: int) -> int:
    return size * width // PAPER_WIDTH
