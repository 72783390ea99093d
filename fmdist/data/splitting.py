"""The seeded, stratified split into training, validation and test."""

from __future__ import annotations

import numpy as np

from fmdist.data.config import SplitConfig
from fmdist.data.raw import RawData, Rows, SplitName
from fmdist.errors import DataError

NAMES: tuple[SplitName, ...] = ("train", "validation", "test")


def split_rows(raw: RawData, rows: Rows, config: SplitConfig, seed: int) -> dict[SplitName, Rows]:
    """Divide ``rows`` into three ascending, disjoint parts.

    Published splits are kept; those that are not published are cut from the published training rows, in the
    proportions of ``config``. Of rows in groups, it is the groups that are divided, each by its first row.

    Raises:
        DataError: if a class has fewer rows than there are splits to fill, or a split would be empty.
    """
    published = np.full(len(rows), "train") if raw.published is None else raw.published[rows]
    parts: dict[SplitName, Rows] = {name: rows[published == name] for name in NAMES}
    wanted = [name for name in NAMES if name == "train" or len(parts[name]) == 0]
    shares = np.array([getattr(config, name) for name in wanted])
    everyone = parts["train"]
    pool = everyone if raw.groups is None else _firsts(everyone, raw.groups)
    groups = [pool]
    if config.stratify and raw.target.kind == "class":
        groups = [pool[raw.targets[pool] == label] for label in range(len(raw.target.names))]
    random = np.random.default_rng([seed if config.seed is None else config.seed, 0])
    cut: list[list[Rows]] = []
    for label, group in enumerate(groups):
        if len(group) < len(wanted):
            raise _too_small(raw, label if len(groups) > 1 else None, len(group), wanted)
        ends = np.cumsum(_sizes(len(group), shares / shares.sum()))[:-1]
        cut.append(np.split(random.permutation(group), ends))
    for name, pieces in zip(wanted, zip(*cut, strict=True), strict=True):
        found = np.sort(np.concatenate(pieces))
        if raw.groups is not None:
            found = everyone[np.isin(raw.groups[everyone], raw.groups[found])]
        parts[name] = found
    return parts


def _firsts(rows: Rows, groups: Rows) -> Rows:
    """Return the first of ``rows`` of every group, ascending."""
    _, first = np.unique(groups[rows], return_index=True)
    return rows[np.sort(first)]


def _sizes(total: int, shares: np.ndarray[tuple[int], np.dtype[np.float64]]) -> list[int]:
    """Return whole sizes near ``total * shares``, each at least 1, that sum to ``total``."""
    ends = np.round(total * np.cumsum(shares)).astype(int)
    sizes = np.diff(ends, prepend=0).tolist()
    while min(sizes) < 1:
        sizes[int(np.argmax(sizes))] -= 1
        sizes[int(np.argmin(sizes))] += 1
    return list(sizes)


def _too_small(raw: RawData, label: int | None, size: int, wanted: list[SplitName]) -> DataError:
    if label is None:
        return DataError(
            field="data.split",
            problem="too few rows for the splits",
            value=size,
            allowed=f"at least one each for {', '.join(wanted)}",
        )
    return DataError(
        field="data.split.stratify",
        problem=f"class '{raw.target.names[label]}' has too few rows to be in every split",
        value=size,
        allowed=f"at least one each for {', '.join(wanted)}",
        fix="add rows of that class, remove it, or set data.split.stratify to false",
    )
