"""Stride-2 convolutions that halve an image, and the transposed ones that lead back to exactly its size.

Shapes: C channels, H height, W width.
"""

from __future__ import annotations

from torch import nn


def sizes(height: int, width: int, halvings: int) -> list[tuple[int, int]]:
    """Return (H, W) before and after each halving, rounded down.

    >>> sizes(28, 9, 2)
    [(28, 9), (14, 4), (7, 2)]
    """
    return [(height >> step, width >> step) for step in range(halvings + 1)]


def halving(before: int, after: int) -> nn.Conv2d:
    """Return a convolution from ``before`` channels (H, W) to ``after`` channels (H // 2, W // 2)."""
    return nn.Conv2d(before, after, 4, stride=2, padding=1)


def doubling(before: int, after: int, goal: tuple[int, int], bias: bool = True) -> nn.ConvTranspose2d:
    """Return the transposed convolution to ``after`` channels of the size ``goal``; undoes `halving`."""
    odd = (goal[0] % 2, goal[1] % 2)
    return nn.ConvTranspose2d(before, after, 4, stride=2, padding=1, output_padding=odd, bias=bias)
