"""GoogLeNet: nine Inception modules, torchvision's, with batch normalization."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from fmdist.contracts import DataSpec
from fmdist.models.torchvision_nets import TorchvisionConfig, built

REQUIRES = ("vision",)


class Config(TorchvisionConfig):
    """Szegedy et al. 2015 (arXiv:1409.4842), normalized as in Ioffe & Szegedy 2015 (arXiv:1502.03167).

    The paper's two auxiliary classifiers are left out, in training too: they were to bring gradient to the
    lower layers, which batch normalization does. So there is one output, always. As in torchvision, the
    branches called 5 x 5 are 3 x 3 (github.com/pytorch/vision/issues/906).
    The network halves an image five times, so that images below 32 pixels are enlarged.
    """

    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Probability of zeroing a pooled feature in training."""

    def build(self, spec: DataSpec, outputs: int) -> nn.Module:
        """Return a module from (B, C, H, W) to (B, outputs)."""
        import torchvision

        with torch.device("meta"):
            net = torchvision.models.googlenet(
                weights=None, aux_logits=False, init_weights=False, dropout=self.dropout
            )
        net = built(net, self, spec, outputs)
        for layer in net.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.01)
        return net
