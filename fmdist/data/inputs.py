"""Files that a user wants predictions for, read as the training data was; without torch."""

from __future__ import annotations

import importlib
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


READERS = {
    "image": "inputs:read_images",
    "table": "inputs:read_tables",
    "text": "text_inputs:read_texts",
    "pair": "text_inputs:read_sources",
    "windows": "text_inputs:read_prompts",
    "ids": "id_inputs:read_ids",
    "array": "array_preprocess:read_arrays",
}
"""Kind of preprocessing -> the function of `fmdist.data` that reads its inputs."""


def read_inputs(paths: Sequence[Path], texts: Sequence[str], preprocess: Preprocess) -> tuple[list[str], Raw]:
    """Return the name of every row, and the raw rows that ``preprocess`` takes.

    Args:
        paths: files of the user; an image file gives one row, a table one for each of its rows.
        texts: inputs given right here, for models that read texts or identifiers.
        preprocess: of the training.

    Raises:
        DataError: naming the file (and row): a missing or unreadable file, an image of the wrong shape, a
            missing or unknown column, a cell that is not a finite number where one is needed.
        DependencyMissing: if reading such files needs an extra that is not installed.
    """
    if not paths and not texts:
        raise DataError(field="INPUT", problem="no input files")
    for path in paths:
        if path.is_dir():
            raise DataError(
                field=str(path), problem="a directory, not a file", fix=f"name files, such as {path}/*"
            )
    module, function = READERS[preprocess.kind].split(":")
    read = getattr(importlib.import_module(f"fmdist.data.{module}"), function)
    names, raw = read(paths, texts, preprocess)
    return list(names), raw


def read_images(
    paths: Sequence[Path], texts: Sequence[str], preprocess: ImagePreprocess
) -> tuple[list[str], Raw]:
    """Read one image from each file, called by its path; see `read_inputs`."""
    _no_texts(texts)
    component.require("vision", needed_by="reading image files")
    return [str(path) for path in paths], np.stack([decode_image(path, preprocess) for path in paths])


def read_tables(
    paths: Sequence[Path], texts: Sequence[str], preprocess: TablePreprocess
) -> tuple[list[str], Raw]:
    """Read the rows of CSV and Parquet files, called ``path:row`` (from 1, the header not counted).

    Columns that were targets or dropped in training may be there; see `read_inputs`.
    """
    _no_texts(texts)
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


def _no_texts(texts: Sequence[str]) -> None:
    if texts:
        raise DataError(
            field="--text",
            problem="this model doesn't read texts",
            value=texts[0],
            fix="give files of the kind that it was trained on",
        )


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
