"""Rows that are not trained or scored on: unreadable, not finite, copies, outliers."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fmdist.data.config import CleanConfig
from fmdist.data.raw import BadRecord, RawData, Rows
from fmdist.errors import DataError
from fmdist.storage import write_text

logger = logging.getLogger(__name__)

_KEEP_FIRST = ("test", "validation", "train")
"""Of copies in several published splits the one in the test split stays: it is what others score on."""


def check_targets(raw: RawData) -> None:
    """Check that there is something to learn.

    Raises:
        DataError: if there are no rows, fewer than two classes, a class out of range, or a target not finite.
    """
    if len(raw.values) == 0:
        raise DataError(field="data", problem="the data set is empty", fix="check where it is read from")
    if raw.target.kind != "class":
        if len(unknown := np.flatnonzero(~np.isfinite(raw.targets).all(axis=1))):
            raise DataError(field=raw.sources[unknown[0]], problem="a target that is not a finite number")
        return
    outside = np.flatnonzero((raw.targets < 0) | (raw.targets >= len(raw.target.names)))
    if len(outside):
        raise DataError(
            field=raw.sources[outside[0]],
            problem=f"{len(outside)} label(s) out of range, this is the first",
            value=int(raw.targets[outside[0]]),
            allowed=f"0 to {len(raw.target.names) - 1}",
            fix="the label file may be damaged or belong to another data set",
        )
    if len(np.unique(raw.targets)) < 2:
        raise DataError(
            field="data",
            problem="all rows are of one class, so there is nothing to learn",
            value=raw.target.names[raw.targets[0]],
            allowed="two or more classes",
        )


def not_finite(raw: RawData, clean: CleanConfig) -> Rows:
    """Return the rows of a table with a number that is missing, nan or infinite.

    Raises:
        DataError: if there are some and ``clean.non_finite`` is ``fail``.
    """
    names = numeric_columns(raw)
    if not names:
        return np.zeros(0, np.int64)
    rows = raw.values.take(np.arange(len(raw.values)))
    finite = np.stack([np.isfinite(rows[name]) for name in names])
    bad = np.flatnonzero(~finite.all(axis=0))
    if len(bad) and clean.non_finite == "fail":
        column = names[int(np.flatnonzero(~finite[:, bad[0]])[0])]
        raise DataError(
            field=raw.sources[bad[0]],
            problem=f"{len(bad)} row(s) have a missing, nan or infinite number, this is the first",
            value=f"column '{column}'",
            fix="mend them, or set data.clean.non_finite to drop",
        )
    return bad


def quarantine(bad: Sequence[BadRecord], total: int, clean: CleanConfig, file: Path | None) -> None:
    """Write the bad records among ``total`` to ``file``, one JSON object a line.

    Raises:
        DataError: if they are more than ``clean.max_bad_share`` of all.
    """
    if file is not None and bad:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, "".join(json.dumps(record._asdict()) + "\n" for record in bad))
    elif file is not None:
        file.unlink(missing_ok=True)  # an older one would tell of data that is no longer read
    if not bad:
        return
    where = f", see {file}" if file is not None else ""
    if len(bad) > clean.max_bad_share * total:
        raise DataError(
            field="data.clean.max_bad_share",
            problem=f"{len(bad)} of {total} records are bad{where}; the first: {': '.join(bad[0])}",
            value=round(len(bad) / total, 4),
            allowed=f"at most {clean.max_bad_share:g}",
            fix="mend or remove them, or raise data.clean.max_bad_share",
        )
    logger.warning("%d of %d records are bad and were left out%s", len(bad), total, where)


def without_copies(raw: RawData, digests: Sequence[bytes], rows: Rows) -> tuple[Rows, int, int]:
    """Return ``rows`` without copies, how many were dropped, and how many of those had another target."""
    order = rows
    if raw.published is not None:
        order = np.concatenate([rows[raw.published[rows] == name] for name in _KEEP_FIRST])
    first: dict[bytes, int] = {}
    kept, conflicts = [], 0
    for row in order.tolist():
        original = first.setdefault(digests[row], row)
        if original == row:
            kept.append(row)
        elif not np.array_equal(raw.targets[original], raw.targets[row]):
            conflicts += 1
    return np.sort(np.array(kept, np.int64)), len(rows) - len(kept), conflicts


def outliers(raw: RawData, train: Rows, clean: CleanConfig) -> Rows:
    """Return those training rows of a table in which some numeric column lies too far out."""
    names = numeric_columns(raw)
    if clean.outliers == "none" or not names:
        return np.zeros(0, np.int64)
    table = raw.values.take(train)
    columns = np.stack([table[name] for name in names], axis=1)
    if clean.outliers == "zscore":
        middle, spread = columns.mean(axis=0), columns.std(axis=0)
        low, high = middle, middle
    else:
        low, high = np.quantile(columns, [0.25, 0.75], axis=0)
        spread = high - low
    # a column that is almost constant has no spread: every other value of it would be an outlier
    spread = np.where(spread > 0, spread, np.inf)
    beyond = np.maximum(low - columns, columns - high) / spread
    far_out: Rows = train[(beyond > clean.outlier_threshold).any(axis=1)]
    return far_out


def numeric_columns(raw: RawData) -> list[str]:
    """Return the names of a table's numeric columns; none for images."""
    dtype = raw.values.take(np.zeros(0, np.int64)).dtype
    return [name for name in dtype.names or () if dtype[name] == np.float64]
