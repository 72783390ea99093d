"""Dropout whose draws belong to a sample, whatever worker or part of the batch the sample is in.

Shapes: B batch, N values of a sample.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

_FIRST, _SECOND = -2048144789, -1028477387
"""The constants of murmur3's finalizer (Appleby 2011), as signed 32-bit numbers."""
_HIGHEST = 0x7FFFFFFF


class Draws:
    """What keys the next forward: the step's seed and its samples; and how many layers have drawn."""

    def __init__(self) -> None:
        self.place = 0
        """How many layers have drawn."""
        self._seed = 0
        self._index_B = torch.zeros(0, dtype=torch.int64)
        self._told = False

    def tell_once(self) -> None:
        """Warn that a layer's rows are no samples, so that its dropout can't be drawn by sample."""
        if not self._told:
            logger.warning("a dropout layer sees rows that are no samples: each worker draws its own")
        self._told = True

    def begin(self, seed: int, index_B: Tensor) -> None:
        """Key what follows by a step's 63-bit ``seed`` and the samples' indices, int64."""
        self._seed = seed
        self.place = 0
        self._index_B = index_B

    @contextmanager
    def again_from(self, place: int) -> Iterator[None]:
        """Draw what the layers from ``place`` on drew, for a forward that is computed again."""
        before, self.place = self.place, place
        try:
            yield
        finally:
            self.place = before

    def keeps(self, x: Tensor, share: float) -> Tensor | None:
        """Return which values to keep, boolean of the shape of ``x``; None if its rows are no samples."""
        batch = len(self._index_B)
        if batch == 0 or x.numel() % batch or x.shape[0] % batch:
            return None
        self.place += 1
        row_B1 = _row_keys(self._seed, self.place, self._index_B)[:, None]
        column_N = torch.arange(x.numel() // batch, dtype=torch.int32, device=x.device)
        drawn = _mix(row_B1 + column_N).bitwise_and_(_HIGHEST)
        return (drawn < int(share * (_HIGHEST + 1))).reshape(x.shape)


class SampleDropout(nn.Dropout):
    """`torch.nn.Dropout` with the draws of `Draws`; native ones where rows are no samples."""

    draws: Draws

    def forward(self, x: Tensor) -> Tensor:
        """Return values (B, ...) of which a share of p is 0, the others divided by 1 - p."""
        if not self.training or self.p == 0.0 or self.p == 1.0:
            return super().forward(x)
        kept = self.draws.keeps(x, 1.0 - self.p)
        if kept is not None:
            return x * kept / (1.0 - self.p)
        self.draws.tell_once()
        return super().forward(x)


@contextmanager
def drawn_by_sample(modules: Iterable[nn.Module], draws: Draws) -> Iterator[None]:
    """Let every `torch.nn.Dropout` of the modules draw by sample while entered.

    They change their class and no more, so that names, weights and hooks stay.
    """
    changed: list[Any] = [part for one in modules for part in one.modules() if type(part) is nn.Dropout]
    for part in changed:
        part.__class__ = SampleDropout
        part.draws = draws
    try:
        yield
    finally:
        for part in changed:
            del part.draws
            part.__class__ = nn.Dropout


def drawn_by_worker(modules: Iterable[nn.Module]) -> list[str]:
    """Return the names of layers whose dropout is inside them, so that it can't be drawn by sample."""
    found = []
    for module in modules:
        for name, part in module.named_modules():
            share = getattr(part, "dropout", None)  # of some a module, which is asked by itself
            if isinstance(share, float | int) and share > 0:
                found.append(name)
    return found


def own_statistics(modules: Iterable[nn.Module]) -> list[str]:
    """Return the names of layers that normalize over the batch, of which a worker sees its part alone."""
    return [
        name
        for module in modules
        for name, part in module.named_modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and not isinstance(part, nn.SyncBatchNorm)
    ]


def _row_keys(seed: int, layer: int, index_B: Tensor) -> Tensor:
    """Return an int32 key for every sample."""
    state = index_B * 0x9E3779B97F4A7C1 + (seed ^ layer * 0x5851F42D4C957F2D & 0x7FFFFFFFFFFFFFFF)
    state = (state ^ state >> 33) * 0x2545F4914F6CDD1D
    return _mix((state ^ state >> 29).bitwise_and(0xFFFFFFFF).to(torch.int64).to(torch.int32))


def _mix(state: Tensor) -> Tensor:
    """Return murmur3's finalizer of int32 values; torch shifts the sign in, so it is masked away."""
    state = (state ^ (state >> 16).bitwise_and_(0xFFFF)) * _FIRST
    state = (state ^ (state >> 13).bitwise_and_(0x7FFFF)) * _SECOND
    return state ^ (state >> 16).bitwise_and_(0xFFFF)
