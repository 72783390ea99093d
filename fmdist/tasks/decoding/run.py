"""What the rules share: how a model is called, whoever runs it.

Shapes: N samples, B batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
"""A batch: the data's inputs by name, ``index`` (B,), and in evaluation ``target``; batch first."""

Run = Callable[[Mapping[str, NDArray[Any]]], NDArray[np.float32]]
"""Runs the served module, in torch or in a runtime: inputs by name to its output, batch first."""


def take(batch: Arrays, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return these arrays of a batch."""
    return {name: batch[name] for name in names}


def chunks(batch: Arrays, size: int) -> list[dict[str, NDArray[Any]]]:
    """Return a batch cut into parts of at most ``size`` samples.

    Copies, since runtimes want aligned, writable memory, which a mapped file isn't.
    """
    total = len(next(iter(batch.values())))
    return [
        {name: np.array(value[start : start + size]) for name, value in batch.items()}
        for start in range(0, total, size)
    ]
