"""VGG 11, 13, 16 and 19: stacked 3 x 3 convolutions and three linear layers, torchvision's."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import nn

from fmdist.contracts import DataSpec
from fmdist.models.torchvision_nets import TorchvisionConfig, built, fit_pooling

REQUIRES = ("vision",)


class Config(TorchvisionConfig):
    """Simonyan & Zisserman 2015 (arXiv:1409.1556), configurations A, B, D and E of its table 1.

    The original reads 224 x 224; the network halves an image five times, so that images below 32 pixels are
    enlarged. Where fewer than 7 x 7 features are left, the first linear layer reads as many as there are.
    """

    depth: Literal[11, 13, 16, 19] = 11
    """Weighted layers."""
    batch_norm: bool = True
    """Normalize after every convolution (Ioffe & Szegedy 2015, arXiv:1502.03167); the paper does not, and has
    to start its deeper networks from a trained shallow one."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Probability of zeroing an output of the first two linear layers in training."""

    def build(self, spec: DataSpec, outputs: int) -> nn.Module:
        """Return a module from (B, C, H, W) to (B, outputs)."""
        import torchvision

        make = getattr(torchvision.models, f"vgg{self.depth}{'_bn' if self.batch_norm else ''}")
        with torch.device("meta"):
            net = make(weights=None, dropout=self.dropout)
        _, size = self.image_size(spec)
        fit_pooling(net, size)
        return _initialized(built(net, self, spec, outputs))


def _initialized(net: nn.Module) -> nn.Module:
    """Draw the weights as torchvision does; the paper's N(0, 0.01) everywhere doesn't train deep networks."""
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0, 0.01)
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
            nn.init.zeros_(layer.bias)
    return net
