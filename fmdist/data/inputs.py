"""Files that a user wants predictions for, read as the training data was; without torch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fmdist import component
from fmdist.data.columns import TableFile, check_column, read_table
from fmdist.data.image_files import decode_image
from fmdist.data.preprocess import Column, ImagePreprocess, Preprocess, Raw, TablePreprocess
from fmdist.errors import DataError, did_you_mean

logger = logging.getLogger(__name__)


def read_inputs(paths: Sequence[Path], preprocess: Preprocess) -> tuple[list[str], Raw]:
    """Return the name of every row, and the raw rows that ``preprocess`` takes.

    Image files give one row each, called by their path; CSV and Parquet files one for each of their rows,
    called ``path:row`` (from 1, the header not counted). Columns that were targets or dropped in training
    may be there.

    Raises:
        DataError: naming the file (and row): a missing or unreadable file, an image of the wrong shape, a
            missing or unknown column, a cell that is not a finite number where one is needed.
        DependencyMissing: if reading such files needs an extra that is not installed.
    """
    if not paths:
        raise DataError(field="INPUT", problem="no input files")
    for path in paths:
        if path.is_dir():
            raise DataError(
                field=str(path), problem="a directory, not a file", fix=f"name files, such as {path}/*"
            )
    if isinstance(preprocess, TablePreprocess):
        return _read_tables(paths, preprocess)
    if isinstance(preprocess, ImagePreprocess):
        component.require("vision", needed_by="reading image files")
        return [str(path) for path in paths], np.stack([decode_image(path, preprocess) for path in paths])
    message = f"no reader for {type(preprocess).__name__}"
    raise TypeError(message)


def _read_tables(paths: Sequence[Path], preprocess: TablePreprocess) -> tuple[list[str], Raw]:
    names: list[str] = []
    tables: list[Raw] = []
    for path in paths:
        file = read_table(path, preprocess.delimiter)
        if file.bad:
            raise DataError(field=file.bad[0].source, problem=file.bad[0].reason)
        _check_columns(file, preprocess)
        rows = np.empty(len(file.rows), preprocess.dtype)
        for column in preprocess.columns:
            rows[column.name] = _cells(file, column)
        names += [file.source(row) for row in range(len(rows))]
        tables.append(rows)
    return names, np.concatenate(tables)


def _check_columns(file: TableFile, preprocess: TablePreprocess) -> None:
    known = [column.name for column in preprocess.columns]
    for name in known:
        check_column(name, file.names, field=str(file.path))
    for name in file.names:
        if name not in known and name not in preprocess.ignored:
            raise DataError(
                field=str(file.path),
                problem="a column that the training data didn't have",
                value=name,
                allowed=", ".join(known),
                fix=did_you_mean(name, known),
            )


def _cells(file: TableFile, column: Column) -> NDArray[np.float64] | NDArray[np.object_]:
    if column.categories is not None:
        texts = file.texts(column.name)
        unseen = sorted(set(texts) - set(column.categories))
        if unseen:
            logger.warning(
                "%s: column '%s' has %d categories that training didn't see, such as '%s'; read as zeros",
                file.path,
                column.name,
                len(unseen),
                unseen[0],
            )
        return texts
    values, _ = file.numbers(column.name)
    if len(bad := np.flatnonzero(~np.isfinite(values))):
        raise DataError(
            field=file.source(bad[0]),
            problem=f"column '{column.name}' needs a finite number",
            value=file.texts(column.name)[bad[0]],
        )
    return values
