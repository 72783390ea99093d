"""Fashion-MNIST: 70,000 clothes, 28 x 28 grey (Xiao et al. 2017), from its published IDX files."""

from __future__ import annotations

from typing import ClassVar

from fmdist.data.idx import IdxConfig


class Config(IdxConfig):
    """The published test split is kept; validation is cut from the training split."""

    dataset: ClassVar[str] = "FashionMNIST"
    names: ClassVar[tuple[str, ...]] = (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    )
