"""What a data kind reads: rows as they are, before cleaning, splitting and preprocessing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fmdist.contracts import TargetSpec
from fmdist.data.preprocess import CHUNK, Preprocess, Raw

SplitName = Literal["train", "validation", "test"]
Rows = NDArray[np.int64]
"""Row numbers of a `RawData`."""


class BadRecord(NamedTuple):
    """A record that could not be read: where it is and why it can't be used."""

    source: str
    reason: str


class Values(Protocol):
    """Rows in memory, or decoded when they are asked for."""

    in_memory: bool

    def __len__(self) -> int: ...

    def take(self, rows: Rows) -> Raw:
        """Return these rows, in this order, as `fmdist.data.preprocess` describes raw rows."""
        ...

    def digests(self) -> Sequence[bytes]:
        """Return a hash of every row's content; equal rows have equal hashes."""
        ...


class ArrayValues:
    """Rows of one array: images uint8 (N, C, H, W), or a table's structured array (N,)."""

    in_memory = True

    def __init__(self, array: Raw) -> None:
        self.array = array

    def __len__(self) -> int:
        return len(self.array)

    def take(self, rows: Rows) -> Raw:
        """Return a copy of these rows."""
        taken: Raw = self.array[rows]
        return taken

    def digests(self) -> list[bytes]:
        """Return the BLAKE2b hash of every row."""
        names = self.array.dtype.names
        if names is None:
            return [digest(row.tobytes()) for row in self.array]
        numeric = [name for name in names if self.array.dtype[name] == np.float64]
        other = [name for name in names if name not in numeric]
        numbers = np.zeros((len(self), len(numeric)), np.float64)
        for index, name in enumerate(numeric):
            numbers[:, index] = self.array[name] + 0.0  # -0.0 and 0.0 are one value
        texts = zip(*(self.array[name] for name in other), strict=True) if other else iter([()] * len(self))
        return [
            digest(row.tobytes() + repr(cells).encode()) for row, cells in zip(numbers, texts, strict=True)
        ]


@dataclass(frozen=True)
class RawData:
    """All readable rows of a data set, and what is known about them."""

    values: Values
    targets: NDArray[Any]
    """int64 (N,) for classes; float32 (N, K) for labels and values."""
    target: TargetSpec
    preprocess: Preprocess
    """Not fitted yet."""
    sources: Sequence[str]
    """Where each row came from: a file, or a file and a row."""
    bad: Sequence[BadRecord] = ()
    published: NDArray[np.str_] | None = None
    """``train``, ``validation`` or ``test`` for every row, where the data set is published in splits."""
    groups: Rows | None = None
    """A number for every row, where rows of the same number must come into the same split."""


def digest(content: bytes) -> bytes:
    """Return a 16-byte hash."""
    return hashlib.blake2b(content, digest_size=16).digest()


def chunks(values: Values, rows: Rows) -> Iterator[Raw]:
    """Yield these rows of ``values``, some at a time."""
    for start in range(0, len(rows), CHUNK):
        yield values.take(rows[start : start + CHUNK])
