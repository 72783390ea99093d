"""Noise of a training step, the same for a sample whatever rank or part of the batch it is in.

Shapes: B batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15
_FIRST = 0xBF58476D1CE4E5B9
_SECOND = 0x94D049BB133111EB


def normal(generator: torch.Generator, stream: int, index_B: Tensor, size: int) -> Tensor:
    """Return standard normal values (B, ``size``), keyed by the step, ``stream`` and each sample's index.

    Only the seed of ``generator`` is read: a rank draws for its samples alone, and a batch that is cut into
    parts gets the values of the whole. Two uniforms make two normals (Box & Muller 1958,
    doi:10.1214/aoms/1177706645).
    """
    half = -(-size // 2)
    unit = uniform(generator, stream, index_B, 2 * half)
    radius = (-2 * torch.log1p(-unit[:, :half])).sqrt()
    angle = 2 * math.pi * unit[:, half:]
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)[:, :size]


def uniform(generator: torch.Generator, stream: int, index_B: Tensor, size: int) -> Tensor:
    """Return float32 values (B, ``size``) in [0, 1), multiples of 2^-24, keyed as those of `normal`."""
    key = torch.tensor(_signed(generator.initial_seed() + stream * _GOLDEN), device=index_B.device)
    row_B1 = _mix(_mix(key) + index_B[:, None] * _signed(_GOLDEN))
    column = torch.arange(1, size + 1, device=index_B.device) * _signed(_GOLDEN)
    return _shift(_mix(row_B1 + column), 40).float() * 2.0**-24


def _mix(state: Tensor) -> Tensor:
    """Return the finalizer of splitmix64 (Steele et al. 2014, doi:10.1145/2660193.2660195); int64 wraps."""
    state = (state ^ _shift(state, 30)) * _signed(_FIRST)
    state = (state ^ _shift(state, 27)) * _signed(_SECOND)
    return state ^ _shift(state, 31)


def _shift(state: Tensor, bits: int) -> Tensor:
    # torch shifts the sign in
    return (state >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    value &= 0xFFFFFFFFFFFFFFFF
    return value - (1 << 64) if value >> 63 else value
