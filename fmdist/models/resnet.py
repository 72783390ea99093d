"""Residual networks: CIFAR-style 20/32/44/56 of our own, and torchvision's 18/34/50."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fmdist import component
from fmdist.contracts import DataSpec
from fmdist.models.base import ModelConfig, image_input


class Config(ModelConfig):
    """He et al. 2016 (arXiv:1512.03385): section 4.2 for depths 20 to 56, table 1 for 18, 34 and 50.

    Shortcuts that change shape are 1 x 1 convolutions (the paper's option B), which can be pruned.
    """

    depth: Literal[18, 20, 32, 34, 44, 50, 56] = 20
    """Weighted layers. 20, 32, 44, 56: for small images; 18, 34, 50: torchvision's (extra `vision`)."""
    width: int = Field(default=16, ge=1)
    """Channels of the first stage, for depths 20 to 56 only; the paper's is 16."""

    def build(self, spec: DataSpec, outputs: int) -> nn.Module:
        """Return a module from (B, C, H, W) to (B, outputs)."""
        channels, _, _ = image_input(spec, self.kind(), smallest=32 if self.depth in (18, 34, 50) else 4)
        if self.depth in (18, 34, 50):
            return _from_torchvision(self.depth, channels, outputs)
        return SmallResNet(channels, outputs, blocks=(self.depth - 2) // 6, width=self.width)


class SmallResNet(nn.Module):
    """Three stages of ``blocks`` basic blocks with ``width``, 2 and 4 times ``width`` channels."""

    def __init__(self, channels: int, outputs: int, blocks: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        stages: list[nn.Module] = []
        incoming = width
        for stage in range(3):
            for block in range(blocks):
                outgoing = width * 2**stage
                stages.append(BasicBlock(incoming, outgoing, stride=2 if stage and not block else 1))
                incoming = outgoing
        self.stages = nn.Sequential(*stages)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(incoming, outputs)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """Return logits (B, outputs)."""
        features_BC = self.pool(self.stages(self.stem(image_BCHW))).flatten(1)
        logits: Tensor = self.head(features_BC)
        return logits


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut around them."""

    def __init__(self, incoming: int, outgoing: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(incoming, outgoing, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outgoing)
        self.conv2 = nn.Conv2d(outgoing, outgoing, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outgoing)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or incoming != outgoing:
            self.shortcut = nn.Sequential(
                nn.Conv2d(incoming, outgoing, 1, stride, bias=False), nn.BatchNorm2d(outgoing)
            )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return features (B, outgoing, H / stride, W / stride)."""
        y_BCHW = torch.relu(self.norm1(self.conv1(x_BCHW)))
        y_BCHW = self.norm2(self.conv2(y_BCHW))
        return torch.relu(y_BCHW + self.shortcut(x_BCHW))


def _from_torchvision(depth: int, channels: int, outputs: int) -> nn.Module:
    component.require("vision", needed_by=f"model.depth {depth} of kind 'resnet'")
    import torchvision

    model: nn.Module = getattr(torchvision.models, f"resnet{depth}")(weights=None, num_classes=outputs)
    if channels != 3:
        model.conv1 = nn.Conv2d(channels, 64, 7, stride=2, padding=3, bias=False)
    return model
