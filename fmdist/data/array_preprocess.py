"""Arrays that are model inputs as they are: nothing is scaled, decoded or padded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fmdist.contracts import InputSpec
from fmdist.data.preprocess import Preprocess, Raw
from fmdist.errors import DataError

INPUT = "input"
"""What the only input is called."""


@dataclass(frozen=True)
class ArrayPreprocess(Preprocess):
    """The identity, on rows of one shape and type."""

    kind: ClassVar[str] = "array"

    shape: tuple[int, ...]
    """Of one row."""
    dtype: Literal["float32", "int64"]
    size: int = 0
    """For int64: values are in [0, size)."""

    @property
    def inputs(self) -> tuple[InputSpec]:
        """``input``, of the shape of a row."""
        return (InputSpec(INPUT, self.shape, self.dtype, self.size),)

    def fit(self, chunks: Iterable[Raw], normalize: bool) -> ArrayPreprocess:
        """Return itself: there is nothing to learn."""
        return self

    def __call__(self, raw: Raw) -> dict[str, NDArray[Any]]:
        """Return ``input``, a copy of the rows.

        Raises:
            DataError: for rows of another shape or type, or ids that the model doesn't know.
        """
        if raw.dtype != self.dtype or raw.shape[1:] != self.shape:
            raise DataError(
                field=INPUT,
                problem="rows of the wrong shape or type",
                value=f"{raw.dtype} {raw.shape}",
                allowed=f"{self.dtype} (N, {', '.join(map(str, self.shape))})",
            )
        if self.dtype == "int64" and raw.size and not (raw.min() >= 0 and raw.max() < self.size):
            raise DataError(
                field=INPUT,
                problem="ids that the model doesn't know",
                value=f"{raw.min()} to {raw.max()}",
                allowed=f"0 to {self.size - 1}",
            )
        return {INPUT: np.array(raw)}

    @staticmethod
    def read_json(value: Mapping[str, Any]) -> ArrayPreprocess:
        """Read the fields that `to_json` wrote."""
        return ArrayPreprocess(tuple(value["shape"]), value["dtype"], value["size"])


def read_arrays(
    paths: Sequence[Path], texts: Sequence[str], preprocess: ArrayPreprocess
) -> tuple[list[str], Raw]:
    """Read the rows of ``.npy`` files, called ``path:row`` (from 0); see `fmdist.data.inputs.read_inputs`."""
    if texts:
        raise DataError(
            field="--text", problem="this model reads arrays", value=texts[0], fix="give .npy files"
        )
    names: list[str] = []
    parts: list[Raw] = []
    for path in paths:
        try:
            rows = np.load(path, allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            reason = " ".join(str(error).split())[:200]
            raise DataError(field=str(path), problem=f"not a .npy file that can be read ({reason})") from None
        if not isinstance(rows, np.ndarray) or rows.shape[1:] != preprocess.shape or not rows.ndim:
            raise DataError(
                field=str(path),
                problem="rows of the wrong shape",
                value=getattr(rows, "shape", type(rows).__name__),
                allowed=f"(N, {', '.join(map(str, preprocess.shape))})",
            )
        names += [f"{path}:{row}" for row in range(len(rows))]
        parts.append(as_input(rows, str(path)))
    return names, np.concatenate(parts)


def as_input(values: NDArray[Any], field: str) -> NDArray[Any]:
    """Return floats as float32 and signed whole numbers as int64.

    Raises:
        DataError: for numbers of another type, or floats that aren't finite.
    """
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise DataError(field=field, problem="numbers that are not finite")
        return values.astype(np.float32)
    if values.dtype.kind == "i":
        return values.astype(np.int64)
    raise DataError(
        field=field,
        problem="inputs of a type that no model here reads",
        value=str(values.dtype),
        allowed="floats as the model takes them, or signed integers that are ids",
        fix="scale images to floats as in training, such as x.astype('float32') / 255",
    )
