"""The three splits of a data set as `torch.utils.data.DataLoader` reads them: by whole batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fmdist.contracts import Batch, DataSpec, Draw
from fmdist.data.preprocess import Preprocess, Raw
from fmdist.data.raw import RawData, Rows, chunks

Augment = Callable[[Raw, Draw], Raw]
"""Returns changed copies of the raw images of a draw."""

PREPROCESSED_BYTES = 2**30
"""A split in memory that is larger than this once preprocessed (float32) is preprocessed batch by batch."""


class Split:
    """One split: a `fmdist.contracts.Dataset` that also gives its raw rows.

    Without augmentation, if it is small enough, all is preprocessed once and a batch is a gather.
    """

    def __init__(
        self, data: RawData, rows: Rows, preprocess: Preprocess, augment: Augment | None = None
    ) -> None:
        self.targets: NDArray[Any] = data.targets[rows]
        self.preprocess = preprocess
        self._data = data
        self._rows = rows
        self._augment = augment
        self._name = preprocess.input.name
        self._target = torch.from_numpy(self.targets)
        self._ready = self._preprocessed() if augment is None and data.values.in_memory else None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitems__(self, draw: Draw) -> Batch:
        """Return the samples of ``draw``: the input float32 (B, ...), ``target``, ``index`` int64 (B,)."""
        index = torch.from_numpy(draw.indices)
        if self._ready is not None:
            values = self._ready.index_select(0, index)
        else:
            raw = self.raw(draw.indices)
            values = torch.from_numpy(self.preprocess(self._augment(raw, draw) if self._augment else raw))
        return {self._name: values, "target": self._target.index_select(0, index), "index": index}

    def raw(self, indices: Rows) -> Raw:
        """Return rows before augmentation and preprocessing, for example to show them."""
        return self._data.values.take(self._rows[indices])

    @property
    def sources(self) -> Sequence[str]:
        """Where each sample came from."""
        return [self._data.sources[row] for row in self._rows]

    def plain(self) -> Split:
        """Return this split without augmentation, for evaluation or calibration on training samples."""
        return self if self._augment is None else Split(self._data, self._rows, self.preprocess)

    def _preprocessed(self) -> torch.Tensor | None:
        shape = (len(self._rows), *self.preprocess.input.shape)
        if 4 * int(np.prod(shape)) > PREPROCESSED_BYTES:
            return None
        ready = np.empty(shape, np.float32)
        at = 0
        for chunk in chunks(self._data.values, self._rows):
            ready[at : at + len(chunk)] = self.preprocess(chunk)
            at += len(chunk)
        return torch.from_numpy(ready)


@dataclass(frozen=True)
class DataSplits:
    """A data set that is ready to train on."""

    spec: DataSpec
    """Shapes and target; its counts are those of the training split."""
    train: Split
    validation: Split
    test: Split
    preprocess: Preprocess
    """What an artifact needs to treat new rows as training did."""
    record: dict[str, Any]
    """JSON facts for the run: sizes and SHA-256 per split, and how many rows were removed and why."""
