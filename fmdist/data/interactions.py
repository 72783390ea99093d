"""Who used, bought or rated what: CSV, TSV, Parquet, and MovieLens' files."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fmdist import component
from fmdist.contracts import TargetSpec
from fmdist.data.base import DataConfig
from fmdist.data.columns import MISSING, TableFile, check_column, read_table
from fmdist.data.config import Location
from fmdist.data.id_preprocess import Feature, IdPreprocess, Side
from fmdist.data.raw import ArrayValues, BadRecord, RawData
from fmdist.errors import DataError
from fmdist.recipe.schema import Section

if TYPE_CHECKING:
    from fmdist.data.splits import DataSplits

REQUIRES = ("table",)

logger = logging.getLogger(__name__)

Delimiter = Annotated[str, Field(min_length=1, max_length=1)]
MOVIELENS = ("user", "item", "rating", "timestamp")
"""The columns of ``u.data`` and ``ratings.dat``, which have no header."""
_LEAST_EACH = 3
"""Interactions of a user of whom one is held out for validation and one for the test."""


class FeaturesConfig(Section):
    """A file with a row per user or item; every chosen column is categorical."""

    path: Location
    """A CSV file with a header line, or a Parquet file; it may know more users or items than the ratings."""
    id: str
    """The column that names the user or the item as the interactions do."""
    columns: list[str] = Field(default_factory=list)
    """Columns with one category a row; an empty cell is none."""
    lists: list[str] = Field(default_factory=list)
    """Columns with any number of categories a row, such as genres."""
    separator: Annotated[str, Field(min_length=1)] = "|"
    """What stands between the categories of a list."""
    delimiter: Delimiter = ","
    """What separates the cells of a CSV file."""

    def read(self) -> tuple[Feature, ...]:
        """Return the features, not fitted yet.

        Raises:
            DataError: if a column is missing, no column is chosen, or a row's name is there twice.
        """
        file = read_table(self.path, self.delimiter)
        chosen = [*self.columns, *self.lists]
        for name in (self.id, *chosen):
            check_column(name, file.names, field=str(self.path))
        if file.bad or not chosen:
            raise DataError(
                field=file.bad[0].source if file.bad else str(self.path),
                problem=file.bad[0].reason if file.bad else "neither columns nor lists are chosen",
                allowed=", ".join(file.names),
            )
        owners = file.texts(self.id).tolist()
        if len(set(owners)) < len(owners):
            twice = next(name for name in owners if owners.count(name) > 1)
            raise DataError(field=str(self.path), problem=f"'{self.id}' is there more than once", value=twice)
        return tuple(self._feature(file, owners, name) for name in chosen)

    def _feature(self, file: TableFile, owners: list[str], name: str) -> Feature:
        cells = {}
        for owner, text in zip(owners, file.texts(name).tolist(), strict=True):
            parts = text.split(self.separator) if name in self.lists else [text]
            cells[owner] = tuple(dict.fromkeys(part.strip() for part in parts if part.strip() != MISSING))
        return Feature(name, cells, name in self.lists)


class Config(DataConfig):
    """Ratings to predict, or implicit feedback to rank by.

    Ratings: inputs `user`, `item` and the side features; the target is the rating. Implicit feedback: an
    interaction is a positive; training contrasts it with sampled items, evaluation ranks for each user all
    items of the training split that the user hasn't met.
    """

    modality: ClassVar[str] = "ids"

    path: Location
    """The interactions, one a row."""
    layout: Literal["table", "movielens"] = "table"
    """`table`: CSV or TSV with a header line, or Parquet. `movielens`: no header; user, item, rating and
    timestamp, separated by a tab (`u.data`) or `::` (`ratings.dat`)."""
    user: str = "user"
    """Column of the user; `movielens` has its own names."""
    item: str = "item"
    """Column of the item."""
    rating: str | None = "rating"
    """Column of the rating; null where there is none (implicit feedback)."""
    timestamp: str | None = None
    """Column of the time, a number; null without one. Equal times are in the file's order. A pair that is
    there several times counts from its earliest time, and `clean.duplicates: drop` keeps that row."""
    delimiter: Delimiter | None = None
    """What separates the cells; null takes a tab for `.tsv`, else a comma."""
    feedback: Literal["ratings", "implicit"] = "ratings"
    """What an interaction says: how much, or only that."""
    rating_range: tuple[float, float] | None = None
    """Smallest and largest rating there is: another makes its row a bad record, and predictions are held
    within. Null allows any."""
    min_rating: float | None = None
    """Implicit feedback: leave out interactions rated lower; null keeps all."""
    holdout: Literal["random", "leave_one_out"] = "random"
    """`random`: rows, in the shares of `split`. `leave_one_out`: of every user with three interactions or
    more the last (by `timestamp`, else in the file) for the test and the one before for validation; `split`
    then divides nothing. Either way all rows of a pair, if they are kept, are in one split."""
    negatives: int = Field(default=4, ge=1)
    """Implicit feedback: items per interaction that the user has not met, drawn anew in every epoch."""
    user_features: FeaturesConfig | None = None
    """Side features of users, the inputs `user.<column>`."""
    item_features: FeaturesConfig | None = None
    """Side features of items, the inputs `item.<column>`."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.feedback == "ratings" and self.rating is None:
            message = "ratings need a column; set data.rating, or data.feedback: implicit"
            raise ValueError(message)
        if self.feedback == "ratings" and self.min_rating is not None:
            message = "min_rating is for implicit feedback; remove data.min_rating"
            raise ValueError(message)
        if self.min_rating is not None and self.rating is None:
            message = "min_rating needs the ratings' column; set data.rating"
            raise ValueError(message)
        if self.rating_range is not None and self.rating_range[0] >= self.rating_range[1]:
            message = f"rating_range must be [smallest, largest], not {list(self.rating_range)}"
            raise ValueError(message)
        if self.clean.outliers != "none":
            message = "outliers are defined for numeric columns; set data.clean.outliers to none"
            raise ValueError(message)
        return self

    def build(self, seed: int, quarantine: Path | None = None) -> DataSplits:
        """Read, clean, split and preprocess; see `DataConfig.build`."""
        # torch is loaded when data is, not when a recipe is validated
        from dataclasses import replace

        from fmdist.data.interaction_split import ranking_splits

        splits = super().build(seed, quarantine)
        assert isinstance(splits.preprocess, IdPreprocess)
        spec = replace(splits.spec, tables=splits.preprocess.item.tables)
        splits = replace(splits, spec=spec)
        return ranking_splits(splits, self.negatives, seed) if self.feedback == "implicit" else splits

    def read(self) -> RawData:
        """Return pairs of a user and an item with their rating (implicit feedback: 1)."""
        file = self._file()
        reasons: dict[int, str] = {}
        users, items = file.texts(self._column("user")), file.texts(self._column("item"))
        for column, texts in (("user", users), ("item", items)):
            _note(reasons, texts == MISSING, texts, self._column(column), "missing")
        times = self._times(file, reasons)
        ratings = self._ratings(file, reasons)
        good = np.setdiff1d(np.arange(len(file.rows)), list(reasons))
        if self.feedback == "implicit":
            if self.min_rating is not None:
                liked = ratings[good] >= self.min_rating
                logger.info("%d interactions are rated below data.min_rating", int((~liked).sum()))
                good = good[liked]
            ratings = np.ones(len(ratings))
        pairs = _numbered(users[good], items[good])
        good = good[_earliest_first(pairs, times[good])]
        values = np.empty(len(good), [("user", object), ("item", object)])
        values["user"], values["item"] = users[good], items[good]
        published = _last_out(values["user"], pairs, times[good]) if self._leaves_one_out else None
        return RawData(
            values=ArrayValues(values),
            targets=ratings[good].astype(np.float32)[:, None],
            target=TargetSpec("value", ("rating",), range=self.rating_range),
            preprocess=IdPreprocess(
                self._side("user", self.user_features),
                self._side("item", self.item_features),
                delimiter=self._delimiter,
            ),
            sources=[file.source(row) for row in good],
            bad=[*file.bad, *(BadRecord(file.source(row), reasons[row]) for row in sorted(reasons))],
            published=published,
            groups=pairs,
        )

    @property
    def _leaves_one_out(self) -> bool:
        return self.holdout == "leave_one_out"

    @property
    def _delimiter(self) -> str:
        # An artifact's users write CSV, whatever the training file was.
        if self.layout == "movielens":
            return ","
        return self.delimiter or ("\t" if self.path.suffix.lower() == ".tsv" else ",")

    def _column(self, name: Literal["user", "item"] | str) -> str:
        return name if self.layout == "movielens" else str(getattr(self, name))

    def _side(self, name: Literal["user", "item"], features: FeaturesConfig | None) -> Side:
        return Side(name, self._column(name), features=() if features is None else features.read())

    def _file(self) -> TableFile:
        if self.layout == "movielens":
            return _read_movielens(self.path)
        file = read_table(self.path, self._delimiter)
        for field in ("user", "item", "rating", "timestamp"):
            if (name := getattr(self, field)) is not None:
                check_column(name, file.names, field=f"data.{field}")
        return file

    def _times(self, file: TableFile, reasons: dict[int, str]) -> NDArray[np.float64]:
        """Return when each interaction was; all 0 if that isn't known."""
        if self.layout != "movielens" and self.timestamp is None:
            return np.zeros(len(file.rows))
        column = "timestamp" if self.timestamp is None else self._column("timestamp")
        times, _ = file.numbers(column)
        _note(reasons, ~np.isfinite(times), file.texts(column), column, "not a time")
        return times

    def _ratings(self, file: TableFile, reasons: dict[int, str]) -> NDArray[np.float64]:
        if self.rating is None:
            return np.ones(len(file.rows))
        column = self._column("rating")
        ratings, _ = file.numbers(column)
        texts = file.texts(column)
        _note(reasons, ~np.isfinite(ratings), texts, column, "not a number")
        if self.rating_range is not None:
            low, high = self.rating_range
            _note(reasons, (ratings < low) | (ratings > high), texts, column, f"not in [{low:g}, {high:g}]")
        return ratings


def _note(
    reasons: dict[int, str], bad: NDArray[np.bool_], texts: NDArray[np.object_], column: str, problem: str
) -> None:
    for row in np.flatnonzero(bad):
        reasons.setdefault(int(row), f"column '{column}': {texts[row]!r} is {problem}")


def _numbered(users: NDArray[np.object_], items: NDArray[np.object_]) -> NDArray[np.int64]:
    """Return the number of every row's pair of a user and an item; pairs count from 0 as they come."""
    numbers: dict[tuple[str, str], int] = {}
    pairs = zip(users.tolist(), items.tolist(), strict=True)
    return np.fromiter((numbers.setdefault(pair, len(numbers)) for pair in pairs), np.int64, len(users))


def _earliest_first(pairs: NDArray[np.int64], times: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the order of rows in which each pair's rows, on the places that they had, are ordered by time.

    >>> _earliest_first(np.array([0, 1, 0, 2]), np.array([7.0, 9.0, 5.0, 0.0])).tolist()
    [2, 1, 0, 3]
    """
    order = np.empty(len(pairs), np.int64)
    # lexsort is stable: equal times stay in the file's order.
    order[np.argsort(pairs, kind="stable")] = np.lexsort((times, pairs))
    return order


def _last_out(
    users: NDArray[np.object_], pairs: NDArray[np.int64], times: NDArray[np.float64]
) -> NDArray[np.str_]:
    """Return the split of every row: the last two pairs of each user are held out, with all their rows.

    A pair's first row, its earliest, says when it was.

    Raises:
        DataError: if no user has enough items.
    """
    rows_of: dict[str, list[int]] = {}
    _, firsts = np.unique(pairs, return_index=True)
    for row in firsts.tolist():
        rows_of.setdefault(users[row], []).append(row)
    enough = [rows for rows in rows_of.values() if len(rows) >= _LEAST_EACH]
    if not enough:
        raise DataError(
            field="data.holdout",
            problem="no user has enough interactions to leave two out",
            allowed=f"at least {_LEAST_EACH} of some user",
            fix="use holdout: random",
        )
    split_of_pair = np.full(len(firsts), "train", "<U10")
    for rows in enough:
        ordered = sorted(rows, key=lambda row: (times[row], row))
        split_of_pair[pairs[ordered[-2]]], split_of_pair[pairs[ordered[-1]]] = "validation", "test"
    return np.asarray(split_of_pair[pairs])


def _read_movielens(path: Path) -> TableFile:
    """Read ``u.data`` or ``ratings.dat``.

    Raises:
        DataError: naming the file, if it is missing, empty, or a line has too few or too many cells.
        DependencyMissing: if pyarrow is not installed.
    """
    component.require("table", needed_by=f"reading {path.name}")
    import pyarrow as pa

    if not path.is_file():
        raise DataError(field=str(path), problem="no such file")
    lines = path.read_text(encoding="latin-1").splitlines()
    if not lines:
        raise DataError(field=str(path), problem="the file is empty")
    separator = "::" if "::" in lines[0] else "\t"
    cells = [line.split(separator) for line in lines]
    fits = np.array([len(row) == len(MOVIELENS) for row in cells])
    bad = tuple(
        BadRecord(f"{path}:{number + 1}", f"{len(cells[number])} cells where {len(MOVIELENS)} are expected")
        for number in np.flatnonzero(~fits)
    )
    if len(bad) == len(lines):
        raise DataError(
            field=str(path),
            problem="not a MovieLens file: no line has four cells between tabs or '::'",
            value=lines[0][:80],
            fix="use data.layout 'table' for a file with a header",
        )
    columns = zip(*(row for row, fit in zip(cells, fits, strict=True) if fit), strict=True)
    table = pa.table(
        {name: pa.array(column, pa.string()) for name, column in zip(MOVIELENS, columns, strict=True)}
    )
    return TableFile(path, MOVIELENS, np.flatnonzero(fits) + 1, bad, table)
