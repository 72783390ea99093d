"""Columns of texts from CSV, TSV, JSON-lines and Parquet files; training and `fmdist predict` read by this.

Unlike `fmdist.data.columns` it leaves a cell as it is: "NA" and "null" are texts, and a text may have lines.
"""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmdist import component
from fmdist.data.columns import check_column
from fmdist.data.raw import BadRecord
from fmdist.errors import DataError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".pq")
"""Endings of the files that `read_columns` reads."""

_Row = Sequence[Any] | str
"""The wanted cells of a row, or why it is bad."""


@dataclass(frozen=True)
class TextRows:
    """Some columns of one file."""

    rows: list[tuple[str, ...]]
    """The wanted cells of every good row; a missing one is the empty string."""
    sources: list[str]
    """``path:row`` of every good row, from 1; neither the header nor blank lines count."""
    bad: list[BadRecord]
    """Rows that could not be read."""


def is_table(path: Path) -> bool:
    """Return whether the name of a file says that it has columns."""
    return path.suffix.lower() in SUFFIXES


def read_columns(path: Path, names: Sequence[str], delimiter: str | None = None) -> TextRows:
    """Read these columns as texts; numbers and truth values are written as JSON writes them.

    Args:
        path: a file of one of `SUFFIXES`.
        names: of the columns wanted.
        delimiter: what separates the cells of a CSV file; None for a tab in ``.tsv`` files, else a comma.

    Raises:
        DataError: naming the file, if it is missing, unreadable, of another kind, without rows, or a column
            is not there.
        DependencyMissing: if it is a Parquet file and pyarrow is not installed.
    """
    if not path.is_file():
        raise DataError(field=str(path), problem="no such file")
    if not is_table(path):
        raise DataError(
            field=str(path),
            problem="not a table of texts",
            value=path.suffix,
            allowed=f"a file that ends in {', '.join(SUFFIXES)}",
        )
    kind = path.suffix.lower()
    if kind in (".parquet", ".pq"):
        found = _parquet(path, names)
    elif kind in (".csv", ".tsv"):
        found = _csv(path, names, delimiter or ("\t" if kind == ".tsv" else ","))
    else:
        found = _json_lines(path, names)
    rows, sources, bad = [], [], []
    try:
        for number, row in enumerate(found, start=1):
            source = f"{path}:{number}"
            if isinstance(row, str):
                bad.append(BadRecord(source, row))
            else:
                rows.append(tuple(_text(cell) for cell in row))
                sources.append(source)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(field=str(path), problem=f"not readable ({error})") from None
    if not rows and not bad:
        raise DataError(field=str(path), problem="the file has no rows")
    return TextRows(rows, sources, bad)


def _csv(path: Path, names: Sequence[str], delimiter: str) -> Iterator[_Row]:
    # The csv module refuses cells of more than 131,072 characters unless told otherwise.
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter=delimiter, strict=True)
        header = next(rows, [])
        for name in names:
            check_column(name, header, field=str(path))
        at = [header.index(name) for name in names]
        for row in filter(None, rows):
            if len(row) == len(header):
                yield [row[position] for position in at]
            else:
                yield f"{len(row)} cells where the header has {len(header)}"


def _json_lines(path: Path, names: Sequence[str]) -> Iterator[_Row]:
    with path.open(encoding="utf-8-sig") as file:
        for position, line in enumerate(line for line in file if line.strip()):
            try:
                row = json.loads(line)
            except ValueError as error:
                yield f"not JSON ({error})"
                continue
            if not isinstance(row, dict):
                yield "not a JSON object"
                continue
            if position == 0:
                for name in names:
                    check_column(name, row, field=str(path))
            cells = [row.get(name) for name in names]
            nested = [name for name, cell in zip(names, cells, strict=True) if isinstance(cell, list | dict)]
            yield f"'{nested[0]}' holds neither text nor a number" if nested else cells


def _parquet(path: Path, names: Sequence[str]) -> Iterator[_Row]:
    component.require("table", needed_by=f"reading {path.name}")
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            for name in names:
                check_column(name, file.schema_arrow.names, field=str(path))
                kind = file.schema_arrow.field(name).type
                if pa.types.is_nested(kind) or pa.types.is_binary(kind):
                    raise DataError(
                        field=str(path),
                        problem=f"column '{name}' holds neither text nor numbers",
                        value=str(kind),
                    )
            for batch in file.iter_batches(columns=list(names)):
                yield from zip(*(batch[name].to_pylist() for name in names), strict=True)
    except pa.ArrowException as error:
        raise DataError(field=str(path), problem=f"not a readable table ({error})") from None


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    return json.dumps(cell) if isinstance(cell, bool | int | float) else str(cell)
