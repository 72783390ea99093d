"""CSV and Parquet files to columns; training and `fmdist predict` both read by this module."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fmdist import component
from fmdist.data.raw import BadRecord
from fmdist.errors import DataError, did_you_mean

if TYPE_CHECKING:
    import pyarrow

MISSING = ""
"""Stands for a missing cell of a categorical column: a category of its own."""

_NULLS = ["", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "?"]
"""Cells of a CSV file that are missing."""


@dataclass(frozen=True)
class TableFile:
    """The rows of one file that have as many cells as there are columns."""

    path: Path
    names: tuple[str, ...]
    rows: NDArray[np.int64]
    """Number of each row in the file, from 1; neither the header nor blank lines count."""
    bad: tuple[BadRecord, ...]
    """Rows with too few or too many cells."""
    _table: pyarrow.Table

    def is_numeric(self, name: str) -> bool:
        """Return whether all cells of a column that are not missing are numbers, and there are some."""
        column = self._table[name]
        return bool(column.null_count < len(column) and not self.numbers(name)[1].any())

    def numbers(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return a column as floats, nan where it is missing, and which cells are no numbers (nan too)."""
        import pyarrow as pa
        import pyarrow.compute as compute

        column = self._table[name]
        if pa.types.is_boolean(column.type):
            return np.full(len(column), np.nan), np.ones(len(column), np.bool_)
        if pa.types.is_string(column.type):
            column = compute.utf8_trim_whitespace(column)
        try:
            floats = compute.cast(column, pa.float64(), safe=False)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return _numbers(column.to_pylist())
        values = floats.to_numpy().astype(np.float64)
        return values, np.zeros(len(values), np.bool_)

    def texts(self, name: str) -> NDArray[np.object_]:
        """Return a column as str, `MISSING` where it is missing."""
        import pyarrow as pa
        import pyarrow.compute as compute

        texts = compute.fill_null(compute.cast(self._table[name], pa.string()), MISSING)
        encoded = compute.utf8_trim_whitespace(texts).combine_chunks().dictionary_encode()
        # equal cells share one str, so that a column costs 8 bytes a row
        names = np.array(encoded.dictionary.to_pylist(), object)
        shared: NDArray[np.object_] = names[encoded.indices.to_numpy(zero_copy_only=False)]
        return shared

    def source(self, position: int) -> str:
        """Return where a row is: the file and the row's number in it."""
        return f"{self.path}:{self.rows[position]}"


def read_table(path: Path, delimiter: str = ",") -> TableFile:
    """Read a CSV file with a header, or a Parquet file (``.parquet``, ``.pq``).

    Raises:
        DataError: naming the file, if it is missing, unreadable, without rows, or a column is there twice.
        DependencyMissing: if pyarrow is not installed.
    """
    component.require("table", needed_by=f"reading {path.name}")
    import pyarrow as pa

    if not path.is_file():
        raise DataError(field=str(path), problem="no such file")
    try:
        read = _read_parquet if path.suffix.lower() in (".parquet", ".pq") else _read_csv
        table, bad = read(path, delimiter)
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(field=str(path), problem=f"not a readable table ({error})") from None
    if table.num_rows == 0 and not bad:
        raise DataError(field=str(path), problem="the table has no rows")
    rows = np.setdiff1d(np.arange(1, table.num_rows + len(bad) + 1), list(bad))
    records = tuple(BadRecord(f"{path}:{number}", reason) for number, reason in bad.items())
    return TableFile(path, tuple(table.column_names), rows, records, table)


def check_column(name: str, known: Iterable[str], field: str) -> None:
    """Check that a column exists.

    Raises:
        DataError: with the nearest name, if it doesn't.
    """
    known = list(known)
    if name not in known:
        raise DataError(
            field=field,
            problem="no such column",
            value=name,
            allowed=", ".join(known),
            fix=did_you_mean(name, known),
        )


def _read_parquet(path: Path, _: str) -> tuple[pyarrow.Table, dict[int, str]]:
    import pyarrow as pa
    from pyarrow import parquet

    table = parquet.read_table(path)
    _check_names(path, table.column_names)
    for field in table.schema:
        if pa.types.is_nested(field.type) or pa.types.is_binary(field.type):
            raise DataError(
                field=str(path),
                problem=f"column '{field.name}' holds neither numbers nor text",
                value=str(field.type),
                fix="remove the column from the file",
            )
    return table, {}


def _read_csv(path: Path, delimiter: str) -> tuple[pyarrow.Table, dict[int, str]]:
    import pyarrow as pa
    from pyarrow import csv as arrow

    with path.open(encoding="utf-8-sig", newline="") as file:
        names = next(csv.reader(file, delimiter=delimiter), [])
    _check_names(path, names)
    bad: dict[int, str] = {}

    def skip(row: Any) -> str:
        bad[row.number - 1] = f"{row.actual_columns} cells where the header has {row.expected_columns}"
        return "skip"

    table = arrow.read_csv(
        path,
        read_options=arrow.ReadOptions(use_threads=False),  # with threads a row doesn't know its number
        parse_options=arrow.ParseOptions(delimiter=delimiter, invalid_row_handler=skip),
        # everything as text: pyarrow would judge a column's type by its first block
        convert_options=arrow.ConvertOptions(
            column_types={name: pa.string() for name in names}, strings_can_be_null=True, null_values=_NULLS
        ),
    )
    return table, bad


def _check_names(path: Path, names: Sequence[str]) -> None:
    if not names:
        raise DataError(field=str(path), problem="the file is empty", allowed="a header and rows")
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise DataError(
            field=str(path), problem="a column is there more than once", value=name, fix="rename one of them"
        )
    if "" in names:
        raise DataError(
            field=str(path), problem="a column has no name", value=names, fix="give every column a name"
        )


def _numbers(cells: Sequence[Any]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values = np.full(len(cells), np.nan)
    bad = np.zeros(len(cells), np.bool_)
    for position, cell in enumerate(cells):
        if cell is None or cell == MISSING:
            continue
        try:
            values[position] = float(cell)
        except (TypeError, ValueError):
            bad[position] = True
        if isinstance(cell, str) and "_" in cell:  # Python reads 1_0 as 10
            values[position], bad[position] = np.nan, True
    return values, bad
