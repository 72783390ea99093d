"""Small data and helpers of the generative tasks' tests."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fmdist.contracts import Batch, DataSpec, Draw, InputSpec, TargetSpec

SIZE = 12
PIXELS = DataSpec((InputSpec("image", (1, 4, 4)),), TargetSpec("class", ("a", "b")), SIZE, (6, 6))
COLUMNS = DataSpec((InputSpec("features", (3,)),), TargetSpec("class", ("a", "b")), SIZE, (6, 6))


class Rows:
    """A data set of one input in memory."""

    def __init__(self, values: NDArray[np.float32], name: str = "image") -> None:
        self.values = values
        self.name = name
        self.targets: NDArray[Any] = np.zeros(len(values), np.int64)

    def __len__(self) -> int:
        return len(self.values)

    def __getitems__(self, draw: Draw) -> Batch:
        index = torch.from_numpy(draw.indices)
        return {self.name: torch.from_numpy(self.values[draw.indices]), "index": index, "target": index * 0}


def pixels(size: int = SIZE, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).random((size, 1, 4, 4), np.float32)


def batch(size: int = SIZE) -> Batch:
    return Rows(pixels(size)).__getitems__(Draw(0, np.arange(size)))


def generator(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def arrays(values: Batch) -> dict[str, NDArray[Any]]:
    return {name: value.numpy() for name, value in values.items()}
