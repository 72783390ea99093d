"""Users and items to ids, with their side features; in numpy only, as all preprocessing.

Ids are positions in the sorted names that the training split has, from 1; id 0 is a name that it hasn't.
Shapes: N rows, L categories of a list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fmdist.contracts import InputSpec
from fmdist.data.preprocess import Preprocess, Raw
from fmdist.errors import DataError


@dataclass(frozen=True)
class Feature:
    """One categorical side feature of users or items."""

    name: str
    cells: Mapping[str, tuple[str, ...]]
    """User or item -> its categories; several only in a list."""
    is_list: bool
    categories: tuple[str, ...] = ()
    """Of the users or items of the training split; a category that isn't listed is 0."""
    longest: int = 1
    """Categories of the longest list."""

    def fit(self, names: Iterable[str]) -> Feature:
        """Return a copy that knows the categories of the users or items of the training split."""
        found = [self.cells.get(name, ()) for name in names]
        categories = tuple(sorted({category for cell in found for category in cell}))
        return replace(self, categories=categories, longest=max(1, *map(len, found)))

    def spec(self, side: str) -> InputSpec:
        """Return the model input, () for one category and (L,) for a list, padded with 0."""
        shape = (self.longest,) if self.is_list else ()
        return InputSpec(f"{side}.{self.name}", shape, "int64", len(self.categories) + 1)

    def encode(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Return (N,) or (N, L) for users or items, known from training or from the features' file alone."""
        codes = {category: code for code, category in enumerate(self.categories, start=1)}
        found = np.zeros((len(names), self.longest), np.int64)
        for row, name in enumerate(names):
            cell = [codes.get(category, 0) for category in self.cells.get(name, ())][: self.longest]
            found[row, : len(cell)] = cell
        return found if self.is_list else found[:, 0]


@dataclass(frozen=True)
class Side:
    """All that is known of the users, or of the items."""

    name: str
    """``user`` or ``item``."""
    column: str
    """What files call it."""
    names: tuple[str, ...] = ()
    """Those of the training split, sorted; the first has id 1."""
    features: tuple[Feature, ...] = ()

    def fit(self, names: Iterable[str]) -> Side:
        """Return a copy that knows the users or items of the training split."""
        known = tuple(sorted(set(names)))
        return replace(self, names=known, features=tuple(feature.fit(known) for feature in self.features))

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """The id, then the features."""
        own = InputSpec(self.name, (), "int64", len(self.names) + 1)
        return own, *(feature.spec(self.name) for feature in self.features)

    @property
    def tables(self) -> dict[str, tuple[tuple[int, ...], ...]]:
        """Every feature's values for every id; id 0 has no category."""
        tables = {}
        for feature in self.features:
            codes = feature.encode(["", *self.names]).reshape(1 + len(self.names), -1)
            tables[feature.spec(self.name).name] = tuple(map(tuple, codes.tolist()))
        return tables

    @cached_property
    def ids(self) -> dict[str, int]:
        """Name -> id."""
        return {name: number for number, name in enumerate(self.names, start=1)}

    def encode(self, names: NDArray[np.object_]) -> dict[str, NDArray[np.int64]]:
        """Return every input for these users or items, (N, ...)."""
        unique, inverse = np.unique(names.astype(str), return_inverse=True)
        found = {self.name: np.array([self.ids.get(name, 0) for name in unique.tolist()], np.int64)}
        for feature in self.features:
            found[feature.spec(self.name).name] = feature.encode(unique.tolist())
        return {name: values[inverse] for name, values in found.items()}


@dataclass(frozen=True)
class IdPreprocess(Preprocess):
    """Names of users and items to ids and side features; for ranking, users alone."""

    kind: ClassVar[str] = "ids"

    user: Side
    item: Side
    ranking: bool = False
    """Rows are users, for whom all items are to be ranked."""
    seen: tuple[tuple[int, ...], ...] = ()
    """For ranking: positions of the items that each user has met, by the user's id; not to be answered."""
    delimiter: str = ","
    """What separates the cells of a CSV file."""

    @property
    def dtype(self) -> np.dtype[np.void]:
        """The structured type of the raw rows: ``user``, and ``item`` unless these are ranked."""
        return np.dtype([(side.name, object) for side in self.sides])

    @property
    def sides(self) -> tuple[Side, ...]:
        """What a row names: the user, and the item unless these are ranked."""
        return (self.user,) if self.ranking else (self.user, self.item)

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """``user``, ``user.*``, and unless items are ranked ``item``, ``item.*``."""
        return tuple(spec for side in self.sides for spec in side.inputs)

    def fit(self, chunks: Iterable[Raw], normalize: bool) -> IdPreprocess:
        """Return a copy that knows the users, items and categories of the training split."""
        names: dict[str, set[str]] = {side.name: set() for side in self.sides}
        for chunk in chunks:
            for name, found in names.items():
                found.update(chunk[name])
        return replace(self, user=self.user.fit(names["user"]), item=self.item.fit(names["item"]))

    def __call__(self, raw: Raw) -> dict[str, NDArray[Any]]:
        """Return the inputs, int64 (N, ...); for ranking ``seen`` too, item positions padded with -1."""
        if raw.dtype != self.dtype or raw.ndim != 1:
            raise DataError(
                field="rows",
                problem="rows of the wrong columns or types",
                value=f"{raw.dtype} {raw.shape}",
                allowed=f"{self.dtype} (N,)",
            )
        found: dict[str, NDArray[Any]] = {}
        for side in self.sides:
            found |= side.encode(raw[side.name])
        if self.ranking:
            found["seen"] = padded([self.seen[user] for user in found["user"].tolist()])
        return found

    @staticmethod
    def read_json(value: Mapping[str, Any]) -> IdPreprocess:
        """Read the fields that `to_json` wrote."""
        return IdPreprocess(
            _read_side(value["user"]),
            _read_side(value["item"]),
            value["ranking"],
            tuple(map(tuple, value["seen"])),
            value["delimiter"],
        )


def padded(lists: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Return lists of item positions as one array (N, the longest, at least 1), padded with -1."""
    array = np.full((len(lists), max([1, *map(len, lists)])), -1, np.int64)
    for row, positions in enumerate(lists):
        array[row, : len(positions)] = positions
    return array


def _read_side(value: Mapping[str, Any]) -> Side:
    features = (
        Feature(
            item["name"],
            {name: tuple(cell) for name, cell in item["cells"].items()},
            item["is_list"],
            tuple(item["categories"]),
            item["longest"],
        )
        for item in value["features"]
    )
    return Side(value["name"], value["column"], tuple(value["names"]), tuple(features))
