"""AlexNet: five convolutions and three linear layers, torchvision's."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from fmdist.contracts import DataSpec
from fmdist.models.torchvision_nets import TorchvisionConfig, built, fit_pooling

REQUIRES = ("vision",)


class Config(TorchvisionConfig):
    """Krizhevsky et al. 2012 (doi:10.1145/3065386), the one-tower form of Krizhevsky 2014 (arXiv:1404.5997).

    The original reads 224 x 224; the network needs 63 pixels a side, so that smaller images are enlarged.
    Where fewer than 6 x 6 features are left, the first linear layer reads as many as there are.
    """

    upscale_to: int = Field(default=64, ge=63)
    """Pixels of the shorter side up to which smaller images are enlarged, bilinear, inside the model."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Probability of zeroing an input of the first two linear layers in training."""

    def build(self, spec: DataSpec, outputs: int) -> nn.Module:
        """Return a module from (B, C, H, W) to (B, outputs)."""
        import torchvision

        with torch.device("meta"):
            net = torchvision.models.alexnet(weights=None, dropout=self.dropout)
        _, size = self.image_size(spec)
        fit_pooling(net, size)
        return built(net, self, spec, outputs)
