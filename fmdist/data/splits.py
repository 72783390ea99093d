"""The three splits of a data set as `torch.utils.data.DataLoader` reads them: by whole batches."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fmdist.contracts import Batch, Dataset, DataSpec, Draw
from fmdist.data.preprocess import Preprocess, Raw
from fmdist.data.raw import RawData, Rows, chunks

Augment = Callable[[Raw, Draw], Raw]
"""Returns changed copies of the raw images of a draw."""

PREPROCESSED_BYTES = 2**30
"""A split in memory that is larger than this once preprocessed is preprocessed batch by batch."""

_BYTES = {"float32": 4, "int64": 8}


class Samples(Dataset, Protocol):
    """What is asked of a split besides its batches."""

    @property
    def sources(self) -> Sequence[str]:
        """Where each sample came from."""
        ...

    def raw(self, indices: Rows) -> Raw:
        """Return samples before augmentation and preprocessing, for example to show them."""
        ...

    def plain(self) -> Samples:
        """Return this split as it is evaluated: nothing in it is drawn at random."""
        ...


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
        self._ragged = [item.name for item in preprocess.inputs if None in item.shape]
        if data.target.kind == "tokens":
            self._ragged.append("target")
            parts = [preprocess(chunk)["target"] for chunk in chunks(data.values, rows)]
            self.targets = concatenate(parts)
        self._target = torch.from_numpy(self.targets)
        self._ready = self._preprocessed() if augment is None and data.values.in_memory else None

    def __len__(self) -> int:
        return len(self._rows)

    def __getitems__(self, draw: Draw) -> Batch:
        """Return the samples of ``draw``: the inputs (B, ...), ``target``, and ``index`` int64 (B,)."""
        index = torch.from_numpy(draw.indices)
        batch: Batch = {}
        if self._ready is not None:
            for name, values in self._ready.items():
                batch[name] = values.index_select(0, index)
        else:
            raw = self.raw(draw.indices)
            named = self.preprocess(self._augment(raw, draw) if self._augment else raw)
            batch = {item.name: torch.from_numpy(named[item.name]) for item in self.preprocess.inputs}
        batch["target"] = self._target.index_select(0, index)
        for name in self._ragged:
            batch[name] = _trimmed(batch[name])
        return {**batch, "index": index}

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

    def _preprocessed(self) -> dict[str, torch.Tensor] | None:
        sizes = [
            math.prod(item.longest if size is None else size for size in item.shape) * _BYTES[item.dtype]
            for item in self.preprocess.inputs
        ]
        if len(self._rows) * sum(sizes) > PREPROCESSED_BYTES:
            return None
        parts = [self.preprocess(chunk) for chunk in chunks(self._data.values, self._rows)]
        return {
            item.name: torch.from_numpy(concatenate([part[item.name] for part in parts]))
            for item in self.preprocess.inputs
        }


def concatenate(parts: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """Return the parts' rows in one array, padded with zeros to the largest extent of every axis."""
    shape = tuple(max(part.shape[axis] for part in parts) for axis in range(1, parts[0].ndim))
    whole = np.zeros((sum(map(len, parts)), *shape), parts[0].dtype)
    at = 0
    for part in parts:
        whole[(slice(at, at + len(part)), *map(slice, part.shape[1:]))] = part
        at += len(part)
    return whole


def _trimmed(values_BT: torch.Tensor) -> torch.Tensor:
    """Return token ids without the columns at the end that are padding in all rows; at least one stays."""
    used_T = (values_BT != 0).any(dim=0).nonzero()
    return values_BT[:, : int(used_T[-1]) + 1 if len(used_T) else 1]


@dataclass(frozen=True)
class DataSplits:
    """A data set that is ready to train on."""

    spec: DataSpec
    """Shapes and target; its counts are those of the training split."""
    train: Samples
    validation: Samples
    test: Samples
    preprocess: Preprocess
    """What an artifact needs to treat new rows as training did."""
    record: dict[str, Any]
    """JSON facts for the run: sizes and SHA-256 per split, and how many rows were removed and why."""
