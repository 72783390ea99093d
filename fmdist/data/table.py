"""A CSV or Parquet file with numeric and categorical columns."""

from __future__ import annotations

import logging
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fmdist.contracts import TargetSpec
from fmdist.data.base import DataConfig
from fmdist.data.columns import MISSING, TableFile, check_column, read_table
from fmdist.data.config import Location
from fmdist.data.preprocess import Column, TablePreprocess
from fmdist.data.raw import ArrayValues, BadRecord, RawData
from fmdist.errors import DataError

REQUIRES = ("table",)

logger = logging.getLogger(__name__)

_TRUTH = {"0": 0.0, "1": 1.0, "0.0": 0.0, "1.0": 1.0, "false": 0.0, "true": 1.0}
_MIN_REPEATS = 2
"""A target with fewer rows per distinct value than this, on average, is no class."""


class Config(DataConfig):
    """Numbers are standardized, categories one-hot; both are fitted on the training split only."""

    modality: ClassVar[str] = "table"

    path: Location
    """A CSV file with a header line, or a Parquet file (``.parquet``, ``.pq``)."""
    target: str | Annotated[list[str], Field(min_length=1)]
    """The column to predict; a list for labels or several values."""
    target_kind: Literal["class", "labels", "value"] = "class"
    """``class``: one of the column's values; ``labels``: columns of 0 and 1; ``value``: numbers."""
    numeric: list[str] = Field(default_factory=list)
    """Columns to read as numbers whatever they hold; a cell that is none makes its row a bad record."""
    categorical: list[str] = Field(default_factory=list)
    """Columns to read as categories though they hold numbers."""
    drop: list[str] = Field(default_factory=list)
    """Columns to leave out."""
    max_categories: int = Field(default=100, ge=1)
    """Stop if a categorical column has more distinct values: it is an identifier, or a number with typos."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    """What separates the cells of a CSV file."""

    def read(self) -> RawData:
        """Return the rows whose cells are all usable; a missing category is one of its own."""
        file = read_table(self.path, self.delimiter)
        targets = [self.target] if isinstance(self.target, str) else self.target
        self._check_columns(file, targets)
        columns = [self._column(file, name) for name in file.names if name not in (*targets, *self.drop)]
        if not columns:
            raise DataError(field="data.drop", problem="no column is left to learn from", value=self.drop)
        template = TablePreprocess(tuple(columns), (*targets, *self.drop), self.delimiter)
        reasons: dict[int, str] = {}
        values = np.empty(len(file.rows), template.dtype)
        for column in columns:
            if column.categories is not None:
                values[column.name] = file.texts(column.name)
            else:
                values[column.name], bad = file.numbers(column.name)
                _note(reasons, bad, file, column.name, "not a number")
        target, spec = _targets(file, targets, self.target_kind, reasons)
        good = np.setdiff1d(np.arange(len(file.rows)), list(reasons))
        return RawData(
            values=ArrayValues(values[good]),
            targets=target[good],
            target=spec,
            preprocess=template,
            sources=[file.source(row) for row in good],
            bad=[*file.bad, *(BadRecord(file.source(row), reasons[row]) for row in sorted(reasons))],
        )

    def _check_columns(self, file: TableFile, targets: list[str]) -> None:
        roles = {
            "target": targets,
            "numeric": self.numeric,
            "categorical": self.categorical,
            "drop": self.drop,
        }
        role_of: dict[str, str] = {}
        for role, names in roles.items():
            for name in names:
                check_column(name, file.names, field=f"data.{role}")
                if name in role_of:
                    raise DataError(
                        field=f"data.{role}",
                        problem=f"the column is already in data.{role_of[name]}",
                        value=name,
                    )
                role_of[name] = role
        if self.target_kind == "class" and len(targets) > 1:
            raise DataError(
                field="data.target",
                problem="a class is in one column",
                value=targets,
                fix="name one column, or set data.target_kind to labels or value",
            )

    def _column(self, file: TableFile, name: str) -> Column:
        if name in self.numeric or (name not in self.categorical and file.is_numeric(name)):
            return Column(name)
        texts = file.texts(name)
        found = set(texts)
        if found == {MISSING}:
            raise DataError(
                field=str(file.path),
                problem="all cells of a column are missing",
                value=name,
                fix="list it under data.drop",
            )
        if len(found) > self.max_categories:
            no_number = file.numbers(name)[1]
            raise DataError(
                field=str(file.path),
                problem=f"column '{name}' has {len(found)} categories, such as '{texts[no_number.argmax()]}'",
                allowed=f"at most {self.max_categories}, data.max_categories",
                fix="list the column under data.drop or data.numeric, or raise data.max_categories",
            )
        return Column(name, categories=())


def _targets(
    file: TableFile, names: list[str], kind: Literal["class", "labels", "value"], reasons: dict[int, str]
) -> tuple[NDArray[np.int64] | NDArray[np.float32], TargetSpec]:
    """Return the targets of all rows, and add to ``reasons`` the rows that have none."""
    if kind == "class":
        return _classes(file, names[0], reasons)
    columns = []
    for name in names:
        if kind == "labels":
            values = np.array([_TRUTH.get(text.strip().lower(), np.nan) for text in file.texts(name)])
            problem = "neither 0 nor 1"
        else:
            values, _ = file.numbers(name)
            values[np.abs(values) > np.finfo(np.float32).max] = np.nan
            problem = "not a finite number"
        _note(reasons, ~np.isfinite(values), file, name, problem)
        columns.append(values)
    return np.stack(columns, axis=1).astype(np.float32), TargetSpec(kind, tuple(names))


def _classes(file: TableFile, name: str, reasons: dict[int, str]) -> tuple[NDArray[np.int64], TargetSpec]:
    texts = file.texts(name)
    _note(reasons, texts == MISSING, file, name, "missing")
    usable = [text for row, text in enumerate(texts) if row not in reasons]
    found = sorted(set(usable))
    if file.is_numeric(name):
        found = sorted(found, key=float)
    if len(found) * _MIN_REPEATS > len(usable) > 0 and len(found) > _MIN_REPEATS:
        raise DataError(
            field="data.target",
            problem=f"column '{name}' has {len(found)} distinct values in {len(usable)} rows",
            value=found[0],
            allowed=f"for a class: {_MIN_REPEATS} rows or more for each value, on average",
            fix="set data.target_kind to value if it is a number",
        )
    code = {text: index for index, text in enumerate(found)}
    return np.array([code.get(text, -1) for text in texts], np.int64), TargetSpec("class", tuple(found))


def _note(
    reasons: dict[int, str], bad: NDArray[np.bool_], file: TableFile, column: str, problem: str
) -> None:
    if not bad.any():
        return
    texts = file.texts(column)
    for row in np.flatnonzero(bad):
        reasons.setdefault(int(row), f"column '{column}': {texts[row]!r} is {problem}")
