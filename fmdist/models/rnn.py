"""Simple recurrent network on token sequences, in one or both directions."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from fmdist.models.recurrent import Cell, RecurrentConfig


class Config(RecurrentConfig):
    """Layers of tanh units (Elman 1990, doi:10.1207/s15516709cog1402_1)."""

    cell: ClassVar[Cell] = nn.RNN
