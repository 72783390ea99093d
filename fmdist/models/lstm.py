"""Long short-term memory on token sequences, in one or both directions."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from fmdist.models.recurrent import Cell, RecurrentConfig


class Config(RecurrentConfig):
    """Layers of LSTM cells (Hochreiter & Schmidhuber 1997, doi:10.1162/neco.1997.9.8.1735)."""

    cell: ClassVar[Cell] = nn.LSTM
