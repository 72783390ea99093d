"""The way from what a kind read to splits that are ready to train on, one numbered step after the other."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmdist.contracts import DataSpec
from fmdist.data.augment import image_augment
from fmdist.data.cleaning import check_targets, not_finite, outliers, quarantine, without_copies
from fmdist.data.config import AugmentConfig, CleanConfig, SplitConfig
from fmdist.data.preprocess import ImagePreprocess, Preprocess
from fmdist.data.preprocess import moments as column_moments
from fmdist.data.raw import BadRecord, RawData, Rows, chunks
from fmdist.data.splits import DataSplits, Split
from fmdist.data.splitting import NAMES, split_rows
from fmdist.errors import DataError

logger = logging.getLogger(__name__)


def build_splits(
    raw: RawData,
    split: SplitConfig,
    clean: CleanConfig,
    augment: AugmentConfig | None,
    normalize: bool,
    seed: int,
    quarantine_file: Path | None,
) -> DataSplits:
    """Return the splits of ``raw``; `fmdist.data.base.DataConfig.build` says more."""
    # 1. Records that can't be used go to quarantine; too many of them stop the run.
    bad_rows = not_finite(raw, clean)
    bad = [*raw.bad, *(BadRecord(raw.sources[row], "a number is missing or not finite") for row in bad_rows)]
    total = len(raw.values) + len(raw.bad)
    quarantine(bad, total, clean, quarantine_file)
    check_targets(raw)
    rows = np.setdiff1d(np.arange(len(raw.values)), bad_rows)

    # 2. Copies go before the split, or the same row could be trained on and scored on.
    digests = raw.values.digests()
    unique, copies, conflicts = without_copies(raw, digests, rows)
    if clean.duplicates == "drop":
        rows = unique
    if copies:
        _tell_copies(copies, conflicts, clean, together=raw.groups is not None)

    # 3. Split; from here on the training split alone decides.
    parts = split_rows(raw, rows, split, seed)
    far_out = outliers(raw, parts["train"], clean)
    parts["train"] = np.setdiff1d(parts["train"], far_out)
    _check_training(raw, rows, parts["train"])
    preprocess = raw.preprocess.fit(chunks(raw.values, parts["train"]), normalize)

    # 4. Ready to be read by batches.
    changes = None
    if augment is not None and isinstance(preprocess, ImagePreprocess):
        changes = image_augment(augment, preprocess.mode, seed)
    spec = _spec(raw, parts["train"], preprocess)
    return DataSplits(
        spec=spec,
        train=Split(raw, parts["train"], preprocess, changes),
        validation=Split(raw, parts["validation"], preprocess),
        test=Split(raw, parts["test"], preprocess),
        preprocess=preprocess,
        record={
            "records": total,
            "quarantined": len(raw.bad),
            "non_finite": len(bad_rows),
            "duplicates": copies,
            "duplicates_dropped": clean.duplicates == "drop",
            "conflicting_duplicates": conflicts,
            "outliers": len(far_out),
            "sizes": {name: len(parts[name]) for name in NAMES},
            "sha256": {name: _split_hash(parts[name], digests, raw.targets) for name in NAMES},
            "train_counts": dict(zip(raw.target.names, spec.counts, strict=False)),
        },
    )


def given_splits(raw: RawData) -> DataSplits:
    """Return the published splits of ``raw`` as they are: nothing is removed, nothing moves.

    Raises:
        DataError: if the training split has fewer than two classes, or not all.
    """
    parts = {name: np.flatnonzero(raw.published == name) for name in NAMES}
    digests = raw.values.digests()
    _check_training(raw, np.arange(len(raw.values)), parts["train"])
    preprocess = raw.preprocess.fit(chunks(raw.values, parts["train"]), normalize=False)
    spec = _spec(raw, parts["train"], preprocess)
    return DataSplits(
        spec=spec,
        train=Split(raw, parts["train"], preprocess),
        validation=Split(raw, parts["validation"], preprocess),
        test=Split(raw, parts["test"], preprocess),
        preprocess=preprocess,
        record={
            "records": len(raw.values),
            "sizes": {name: len(parts[name]) for name in NAMES},
            "sha256": {name: _split_hash(parts[name], digests, raw.targets) for name in NAMES},
            "train_counts": dict(zip(raw.target.names, spec.counts, strict=False)),
        },
    )


def _tell_copies(copies: int, conflicts: int, clean: CleanConfig, together: bool) -> None:
    if clean.duplicates == "drop":
        logger.warning("%d duplicate rows were dropped, %d of them with another target", copies, conflicts)
    elif together:
        logger.warning(
            "%d duplicate rows were kept, each in the split of its first, %d of them with another target",
            copies,
            conflicts,
        )
    else:
        logger.warning(
            "%d duplicate rows were kept, %d of them with another target: the same row may be trained on and "
            "scored on, so the score may be too good",
            copies,
            conflicts,
        )


def _check_training(raw: RawData, rows: Rows, train: Rows) -> None:
    """Refuse a training split that cleaning or an unstratified split left with too little to learn."""
    labels = raw.targets[train]
    if len(train) == 0 or (raw.target.kind == "class" and len(np.unique(labels)) < 2):
        raise DataError(
            field="data.split",
            problem="fewer than two classes are left in the training split"
            if len(train)
            else "no rows are left",
            value=f"{len(train)} rows",
            fix="stratify the split, or raise data.clean.outlier_threshold",
        )
    if raw.target.kind == "class" and len(missing := np.setdiff1d(raw.targets[rows], labels)):
        raise DataError(
            field="data.split",
            problem="classes that the training split doesn't have",
            value=[raw.target.names[label] for label in missing],
            fix="stratify the split, add samples of them, or leave them out of the data",
        )


def _spec(raw: RawData, train: Rows, preprocess: Preprocess) -> DataSpec:
    targets, target = raw.targets[train], raw.target
    counts: tuple[int, ...] = ()
    moments: tuple[tuple[float, float], ...] = ()
    if target.kind == "class":
        counts = tuple(np.bincount(targets, minlength=len(target.names)).tolist())
    elif target.kind == "labels":
        counts = tuple(targets.sum(axis=0).astype(int).tolist())
    elif target.kind == "value":
        means, deviations = column_moments(targets.astype(np.float64))
        moments = tuple(zip(means.tolist(), deviations.tolist(), strict=True))
    return DataSpec(
        preprocess.inputs, preprocess.target(target), len(train), counts, moments, preprocess.tokenizers
    )


def _split_hash(rows: Rows, digests: Sequence[bytes], targets: NDArray[Any]) -> str:
    """Return the SHA-256 of a split's rows and targets, in order."""
    state = hashlib.sha256()
    for row in rows:
        state.update(digests[row])
    state.update(np.ascontiguousarray(targets[rows]).tobytes())
    return state.hexdigest()
