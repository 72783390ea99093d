"""Users, or pairs of a user and an item, that somebody wants predictions for; without torch."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fmdist.data.columns import check_column, read_table
from fmdist.data.id_preprocess import IdPreprocess
from fmdist.data.preprocess import Raw
from fmdist.errors import DataError

logger = logging.getLogger(__name__)


def read_ids(paths: Sequence[Path], texts: Sequence[str], preprocess: IdPreprocess) -> tuple[list[str], Raw]:
    """Read users from texts, and users (for ratings: pairs) from CSV and Parquet files with a header.

    Rows of files are called ``path:row`` (from 1, the header not counted); other columns are not read.

    Raises:
        DataError: for a text where a pair is needed, or a file without the columns.
        DependencyMissing: if pyarrow is not installed and there are files.
    """
    if texts and not preprocess.ranking:
        raise DataError(
            field="--text",
            problem="a rating needs a user and an item",
            value=texts[0],
            fix=f"give a CSV file with the columns {', '.join(side.column for side in preprocess.sides)}",
        )
    names = list(texts)
    tables = [np.array([(text,) for text in texts], preprocess.dtype)] if texts else []
    for path in paths:
        file = read_table(path, preprocess.delimiter)
        if file.bad:
            raise DataError(field=file.bad[0].source, problem=file.bad[0].reason)
        rows = np.empty(len(file.rows), preprocess.dtype)
        for side in preprocess.sides:
            check_column(side.column, file.names, field=str(path))
            rows[side.name] = file.texts(side.column)
        names += [file.source(row) for row in range(len(rows))]
        tables.append(rows)
    raw = np.concatenate(tables)
    _tell_unknown(raw, preprocess)
    return names, raw


def _tell_unknown(raw: Raw, preprocess: IdPreprocess) -> None:
    for side in preprocess.sides:
        unknown = sorted(set(raw[side.name]) - set(side.names))
        if unknown:
            logger.warning(
                "%d %s(s) were not in the training data, such as '%s': answered for as an average one",
                len(unknown),
                side.name,
                unknown[0],
            )
