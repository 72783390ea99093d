"""MNIST: 70,000 handwritten digits, 28 x 28 grey (LeCun et al. 1998), from its published IDX files."""

from __future__ import annotations

from typing import ClassVar

from fmdist.data.idx import IdxConfig


class Config(IdxConfig):
    """The published test split is kept; validation is cut from the training split."""

    dataset: ClassVar[str] = "MNIST"
    names: ClassVar[tuple[str, ...]] = tuple(str(digit) for digit in range(10))
