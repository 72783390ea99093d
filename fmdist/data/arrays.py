"""Data that a Python program has in memory: inputs as the model takes them, with their targets, in splits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fmdist.contracts import TargetSpec
from fmdist.data.array_preprocess import ArrayPreprocess, as_input
from fmdist.data.building import given_splits
from fmdist.data.raw import ArrayValues, RawData
from fmdist.data.splits import DataSplits
from fmdist.data.splitting import NAMES
from fmdist.errors import DataError

Pair = tuple[Any, Any]
"""Inputs (N, ...) and targets (N,) or (N, K); NumPy arrays, or tensors on the CPU."""


@dataclass(frozen=True)
class Arrays:
    """Inputs as a model takes them and what it should answer; nothing is shuffled, scaled or removed.

    Inputs are (N, ...) floats (kept as float32) or signed integers (ids, kept as int64). Targets are whole
    numbers from 0, (N,), for classification, and floats (N,) or (N, K) for regression.

    >>> x, y = np.zeros((4, 3), np.float32), np.array([0, 1, 0, 1])
    >>> Arrays(train=(x, y), validation=(x, y), test=(x, y)).build().spec.target.names
    ('0', '1')
    """

    train: Pair
    """Calibrates, and trains on where a pass asks for it."""
    validation: Pair
    """Chooses between settings, and keeps to the budget."""
    test: Pair
    """Scores what is written."""
    task: Literal["classification", "regression"] = "classification"
    names: Sequence[str] | None = None
    """Of the classes or values, in the order of the model's outputs; by default ``0``, ``1``, ..."""

    def build(self) -> DataSplits:
        """Return the splits as training and compression read them.

        Raises:
            DataError: naming the split whose inputs or targets can't be used.
        """
        if self.task not in ("classification", "regression"):
            raise DataError(
                field="task", problem="unknown value", value=self.task, allowed="classification, regression"
            )
        parts = {name: self._part(name, getattr(self, name)) for name in NAMES}
        inputs = np.concatenate([x for x, _ in parts.values()])
        targets = np.concatenate([y for _, y in parts.values()])
        whole = inputs.dtype == np.int64
        if whole and len(inputs) and inputs.min() < 0:
            raise DataError(field="train", problem="ids below 0", value=int(inputs.min()))
        preprocess = ArrayPreprocess(
            inputs.shape[1:], "int64" if whole else "float32", int(inputs.max()) + 1 if whole else 0
        )
        return given_splits(
            RawData(
                values=ArrayValues(inputs),
                targets=targets,
                target=TargetSpec("class" if targets.ndim == 1 else "value", self._names(targets)),
                preprocess=preprocess,
                sources=[f"{name}:{row}" for name, (x, _) in parts.items() for row in range(len(x))],
                published=np.repeat(list(parts), [len(x) for x, _ in parts.values()]),
            )
        )

    def _part(self, name: str, pair: Pair) -> tuple[NDArray[Any], NDArray[Any]]:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise DataError(field=name, problem="not a pair of inputs and targets", value=type(pair).__name__)
        inputs, targets = as_input(np.asarray(pair[0]), name), np.asarray(pair[1])
        if not len(inputs) or len(inputs) != len(targets):
            raise DataError(
                field=name,
                problem="as many targets as inputs are needed, at least one",
                value=f"{len(inputs)} inputs, {len(targets)} targets",
            )
        first = np.shape(self.train[0])[1:]
        if inputs.shape[1:] != first:
            raise DataError(
                field=name,
                problem="rows of another shape than in train",
                value=inputs.shape[1:],
                allowed=str(first),
            )
        return inputs, self._targets(name, targets)

    def _targets(self, name: str, targets: NDArray[Any]) -> NDArray[Any]:
        if self.task == "classification":
            if targets.ndim != 1 or targets.dtype.kind not in "iu" or targets.min() < 0:
                raise DataError(
                    field=name,
                    problem="targets that aren't classes",
                    value=f"{targets.dtype} {targets.shape}",
                    allowed="whole numbers from 0, of shape (N,)",
                )
            return targets.astype(np.int64)
        if targets.ndim not in (1, 2) or targets.dtype.kind not in "fiu" or not np.isfinite(targets).all():
            raise DataError(
                field=name,
                problem="targets that aren't values",
                value=f"{targets.dtype} {targets.shape}",
                allowed="finite numbers, of shape (N,) or (N, K)",
            )
        return targets.reshape(len(targets), -1).astype(np.float32)

    def _names(self, targets: NDArray[Any]) -> tuple[str, ...]:
        size = int(targets.max()) + 1 if targets.ndim == 1 else targets.shape[1]
        if self.names is None:
            return tuple(map(str, range(size)))
        if len(self.names) < size or (targets.ndim == 2 and len(self.names) != size):
            raise DataError(
                field="names",
                problem="not one name for each target",
                value=len(self.names),
                allowed=str(size),
            )
        return tuple(self.names)
