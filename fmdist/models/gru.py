"""Gated recurrent units on token sequences, in one or both directions."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from fmdist.models.recurrent import Cell, RecurrentConfig


class Config(RecurrentConfig):
    """Layers of GRU cells (Cho et al. 2014, arXiv:1406.1078)."""

    cell: ClassVar[Cell] = nn.GRU
