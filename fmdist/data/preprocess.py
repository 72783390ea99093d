"""From raw rows to model inputs, in numpy only: training, artifacts and `fmdist predict` share this code.

A `Preprocess` is fitted on the training split, then frozen; `to_json` puts it into an artifact's manifest.
Shapes: N rows, C channels, H height, W width, F features.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from fmdist.contracts import InputSpec, TargetSpec
from fmdist.errors import DataError

Raw = NDArray[Any]
"""Raw rows. Images: uint8 (N, C, H, W). Else a structured array (N,) with one field per column, float64 for
numbers and object (str) for categories and texts, where the empty string stands for a missing category."""

KINDS = {
    "image": "preprocess:ImagePreprocess",
    "table": "preprocess:TablePreprocess",
    "text": "text_preprocess:TextPreprocess",
    "pair": "pair_preprocess:PairPreprocess",
    "windows": "window_preprocess:WindowPreprocess",
    "ids": "id_preprocess:IdPreprocess",
    "array": "array_preprocess:ArrayPreprocess",
}
"""Kind -> where in `fmdist.data` its class is."""

CHUNK = 1024
"""Rows that are decoded or preprocessed at a time where a whole split might not fit into memory."""


@dataclass(frozen=True)
class Preprocess:
    """The base of all preprocessing; `KINDS` names what there is."""

    kind: ClassVar[str]

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The model inputs that this yields."""
        raise NotImplementedError

    @property
    def tokenizers(self) -> dict[str, str]:
        """The fitted tokenizers, as `fmdist.contracts.DataSpec` names them; none without text."""
        return {}

    def target(self, spec: TargetSpec) -> TargetSpec:
        """Return the data's target with what only fitting could tell, such as a vocabulary's size."""
        return spec

    def fit(self, chunks: Iterable[Raw], normalize: bool) -> Preprocess:
        """Return a copy fitted on the raw rows of the training split, given in chunks."""
        raise NotImplementedError

    def __call__(self, raw: Raw) -> dict[str, NDArray[Any]]:
        """Return every input by name, (N, ...); along a free axis padded to the longest of these rows.

        Where the target is made of tokens, ``target`` too.

        Raises:
            DataError: if ``raw`` has another shape or type than the rows this was fitted on.
        """
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` reads them back."""
        return {"kind": self.kind, **asdict(self)}

    @staticmethod
    def read_json(value: Mapping[str, Any]) -> Preprocess:
        """Read the fields that `to_json` wrote."""
        raise NotImplementedError

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Preprocess:
        """Read what `to_json` wrote.

        Raises:
            DataError: if it is of a kind that this version doesn't know.
        """
        if value.get("kind") not in KINDS:
            raise DataError(
                field="preprocessing.kind",
                problem="unknown kind of preprocessing",
                value=value.get("kind"),
                allowed=", ".join(KINDS),
            )
        module, name = KINDS[value["kind"]].split(":")
        reader: type[Preprocess] = getattr(importlib.import_module(f"fmdist.data.{module}"), name)
        return reader.read_json({key: item for key, item in value.items() if key != "kind"})


@dataclass(frozen=True)
class ImagePreprocess(Preprocess):
    """uint8 images to ``(image / 255 - mean) / std``, float32."""

    kind: ClassVar[str] = "image"

    shape: tuple[int, int, int]
    """(C, H, W)."""
    mode: Literal["L", "RGB"]
    """Grey or colour, as Pillow names it; image files of another mode are converted."""
    resize: Literal["crop", "stretch"] | None = None
    """How an image file of another size is brought to `shape`; None refuses it.

    ``crop`` scales the shorter side and cuts out the centre; ``stretch`` changes the aspect ratio.
    """
    mean: tuple[float, ...] = ()
    """Per channel, of pixels in [0, 1]; empty before `fit`."""
    std: tuple[float, ...] = ()
    """Per channel, of pixels in [0, 1]."""

    @property
    def inputs(self) -> tuple[InputSpec]:
        """``image``, (C, H, W)."""
        return (InputSpec("image", self.shape),)

    def fit(self, chunks: Iterable[Raw], normalize: bool) -> ImagePreprocess:
        """Return a copy with the mean and std of every channel, exact since it counts the 256 values."""
        channels = self.shape[0]
        if not normalize:
            return replace(self, mean=(0.0,) * channels, std=(1.0,) * channels)
        counts = np.zeros((channels, 256), np.int64)
        for chunk in chunks:
            for channel in range(channels):
                counts[channel] += np.bincount(chunk[:, channel].ravel(), minlength=256)
        shares = counts / counts.sum(axis=1, keepdims=True)
        values = np.arange(256) / 255
        mean = shares @ values
        std = np.sqrt((shares * (values - mean[:, None]) ** 2).sum(axis=1))
        return replace(self, mean=tuple(mean.tolist()), std=tuple(_nonzero(std).tolist()))

    def __call__(self, raw: Raw) -> dict[str, NDArray[Any]]:
        """Return ``image``, float32 (N, C, H, W)."""
        if raw.dtype != np.uint8 or raw.shape[1:] != self.shape:
            raise DataError(
                field="image",
                problem="images of the wrong shape or type",
                value=f"{raw.dtype} {raw.shape}",
                allowed=f"uint8 (N, {', '.join(map(str, self.shape))})",
            )
        std = np.array(self.std, np.float64).reshape(-1, 1, 1)
        mean = np.array(self.mean, np.float64).reshape(-1, 1, 1)
        values = raw.astype(np.float32)
        values *= (1 / (255 * std)).astype(np.float32)
        values -= (mean / std).astype(np.float32)
        return {"image": values}

    @staticmethod
    def read_json(value: Mapping[str, Any]) -> ImagePreprocess:
        """Read the fields that `to_json` wrote."""
        return ImagePreprocess(
            shape=tuple(value["shape"]),
            mode=value["mode"],
            resize=value["resize"],
            mean=tuple(value["mean"]),
            std=tuple(value["std"]),
        )


@dataclass(frozen=True)
class Column:
    """One column of a table: numeric, unless it has `categories`."""

    name: str
    mean: float = 0.0
    std: float = 1.0
    """0 if all training rows had the same number: nothing is known of others, so that each becomes 0."""
    categories: tuple[str, ...] | None = None
    """None for a numeric column; else one feature each. A category that isn't listed is all zeros."""

    @property
    def width(self) -> int:
        """How many features the column becomes."""
        return 1 if self.categories is None else len(self.categories)


@dataclass(frozen=True)
class TablePreprocess(Preprocess):
    """Columns to features: numeric ones standardized, categorical ones one-hot, in the columns' order."""

    kind: ClassVar[str] = "table"

    columns: tuple[Column, ...]
    ignored: tuple[str, ...] = ()
    """Columns of the training file that are no features (targets, dropped ones); files may have them."""
    delimiter: str = ","
    """What separates the cells of a CSV file."""

    @property
    def dtype(self) -> np.dtype[np.void]:
        """The structured type of the raw rows."""
        return np.dtype([(c.name, np.float64 if c.categories is None else object) for c in self.columns])

    @property
    def inputs(self) -> tuple[InputSpec]:
        """``features``, (F,)."""
        return (InputSpec("features", (sum(column.width for column in self.columns),)),)

    def fit(self, chunks: Iterable[Raw], normalize: bool) -> TablePreprocess:
        """Return a copy with mean, std and categories of every column."""
        rows = np.concatenate(list(chunks))
        return replace(self, columns=tuple(_fit(column, rows, normalize) for column in self.columns))

    def __call__(self, raw: Raw) -> dict[str, NDArray[Any]]:
        """Return ``features``, float32 (N, F)."""
        if raw.dtype != self.dtype or raw.ndim != 1:
            raise DataError(
                field="features",
                problem="rows of the wrong columns or types",
                value=f"{raw.dtype} {raw.shape}",
                allowed=f"{self.dtype} (N,)",
            )
        features = np.empty((len(raw), sum(column.width for column in self.columns)), np.float32)
        at = 0
        for column in self.columns:
            part = features[:, at : at + column.width]
            if column.categories is None and column.std == 0:
                part[:] = 0
            elif column.categories is None:
                part[:, 0] = (raw[column.name] - column.mean) / column.std
            else:
                code = {category: index for index, category in enumerate(column.categories)}
                codes = np.fromiter((code.get(cell, -1) for cell in raw[column.name]), np.int64, len(raw))
                part[:] = codes[:, None] == np.arange(column.width)
            at += column.width
        return {"features": features}

    @staticmethod
    def read_json(value: Mapping[str, Any]) -> TablePreprocess:
        """Read the fields that `to_json` wrote."""
        columns = (
            Column(
                column["name"],
                column["mean"],
                column["std"],
                None if column["categories"] is None else tuple(column["categories"]),
            )
            for column in value["columns"]
        )
        return TablePreprocess(tuple(columns), tuple(value["ignored"]), value["delimiter"])


def _fit(column: Column, rows: Raw, normalize: bool) -> Column:
    cells = rows[column.name]
    if column.categories is not None:
        return replace(column, categories=tuple(sorted(set(cells))))
    if not normalize:
        return column
    mean, std = moments(cells)
    return replace(column, mean=float(mean), std=float(std))


def moments(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean and standard deviation over the first axis; of a constant exactly that constant and 0.

    The mean of many times 0.1 is only nearly 0.1, and so the deviation only nearly 0: nothing to divide by.

    >>> [part.tolist() for part in moments(np.array([[0.1, 1], [0.1, 3], [0.1, 5], [0.1, 7]]))]
    [[0.1, 4.0], [0.0, 2.23606797749979]]
    """
    first, constant = values[0], values.min(axis=0) == values.max(axis=0)
    with np.errstate(over="ignore", invalid="ignore"):  # a sum of huge constants, which isn't used
        mean, std = values.mean(axis=0), values.std(axis=0)
    return np.where(constant, first, mean), np.where(constant, 0.0, std)


def _nonzero(std: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return ``std`` with 1 for a channel of one value, which so becomes 0 and not nan."""
    return np.where(std > 0, std, 1.0)
