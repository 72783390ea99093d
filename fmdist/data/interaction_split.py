"""Implicit feedback as splits: pairs with sampled negatives to train on, users with held-out items to score.

Shapes: B batch, N samples, L items of a list, M negatives of a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from fmdist.contracts import Batch, Draw, TargetSpec
from fmdist.data.id_preprocess import IdPreprocess, padded
from fmdist.data.raw import ArrayValues, RawData
from fmdist.data.splits import DataSplits, Samples, Split
from fmdist.errors import DataError

Lists = dict[str, list[int]]
"""User -> positions of items, from 0."""


class PairSplit(Split):
    """Pairs of a user and an item that they met, each with items that they didn't meet in training.

    A batch adds ``negative`` (B, M) and the side features ``negative.*`` (B, M, ...) to the inputs; the
    target is the item's position (B, 1). Negatives are uniform and keyed by (seed, epoch, sample).
    """

    def __init__(self, pairs: Samples, preprocess: IdPreprocess, negatives: int, seed: int) -> None:
        rows = np.arange(len(pairs))
        raw = pairs.raw(rows)
        encoded = preprocess(raw)
        positions = encoded["item"] - 1
        target = TargetSpec("items", size=len(preprocess.item.names))
        data = RawData(ArrayValues(raw), positions[:, None], target, preprocess, pairs.sources)
        super().__init__(data, rows, preprocess)
        self._seed = seed
        self._draws = negatives
        self._unmet = _Unmet(encoded["user"], positions, target.size)
        self._users = encoded["user"]
        shapes = {item.name: item.shape for item in preprocess.item.inputs}
        self._features = {
            name.removeprefix("item"): torch.tensor(table) if shapes[name] else torch.tensor(table)[:, 0]
            for name, table in preprocess.item.tables.items()
        }

    def __getitems__(self, draw: Draw) -> Batch:
        """Return the pairs of ``draw`` with their negatives."""
        batch = super().__getitems__(draw)
        uniform_BM = _uniform(self._seed, draw, self._draws)
        negative_BM = torch.from_numpy(self._unmet.take(self._users[draw.indices], uniform_BM) + 1)
        features = {f"negative{name}": table[negative_BM] for name, table in self._features.items()}
        return {**batch, "negative": negative_BM, **features}

    def plain(self) -> Split:
        """Return the same pairs as questions: rank the item among those that this user didn't meet."""
        raw = self.raw(np.arange(len(self)))
        lists = grouped(raw["user"], self.targets[:, 0])
        assert isinstance(self.preprocess, IdPreprocess)
        return RankingSplit(raw["user"], self.targets, lists, self.preprocess, self.sources)


class RankingSplit(Split):
    """Users with items to find among all: a batch adds ``seen`` (B, L), items to leave out, padded with -1.

    Args:
        users: (N,) names.
        targets_NL: positions of the items to find, padded with -1.
        seen: what is left out, unless it is to be found.
        preprocess: of pairs.
        sources: where each sample came from.
    """

    def __init__(
        self,
        users: NDArray[np.object_],
        targets_NL: NDArray[np.int64],
        seen: Lists,
        preprocess: IdPreprocess,
        sources: Sequence[str],
    ) -> None:
        ranking = for_ranking(preprocess, {})
        raw = np.empty(len(users), ranking.dtype)
        raw["user"] = users
        target = TargetSpec("items", size=len(ranking.item.names))
        super().__init__(
            RawData(ArrayValues(raw), targets_NL, target, ranking, sources), np.arange(len(users)), ranking
        )
        self._users = users
        self._seen = seen

    def __getitems__(self, draw: Draw) -> Batch:
        """Return the users of ``draw`` with the items that they have met."""
        wanted = self.targets[draw.indices].tolist()
        seen = [
            [item for item in self._seen.get(user, ()) if item not in found]
            for user, found in zip(self._users[draw.indices], wanted, strict=True)
        ]
        return {**super().__getitems__(draw), "seen": torch.from_numpy(padded(seen))}


def ranking_splits(pairs: DataSplits, negatives: int, seed: int) -> DataSplits:
    """Return the splits of implicit feedback from those of its pairs.

    The test leaves out what a user met in the validation split too. Held-out items that the training split
    hasn't can't be ranked: they are left out of the targets, and counted in the record.

    Raises:
        DataError: if nothing is held out that could be ranked, or somebody met every item.
    """
    assert isinstance(pairs.preprocess, IdPreprocess)
    preprocess = pairs.preprocess
    cold: dict[str, int] = {}
    train = PairSplit(pairs.train, preprocess, negatives, seed)
    seen = grouped(train.raw(np.arange(len(train)))["user"], train.targets[:, 0])
    held: dict[str, RankingSplit] = {}
    for name, split in (("validation", pairs.validation), ("test", pairs.test)):
        raw = split.raw(np.arange(len(split)))
        positions = preprocess.item.encode(raw["item"])["item"] - 1
        cold[name] = int((positions < 0).sum())
        warm = positions >= 0
        wanted = _distinct(grouped(raw["user"][warm], positions[warm]))
        if not wanted:
            raise DataError(
                field="data.split",
                problem=f"no interaction of the {name} split is with an item of the training split",
                value=f"{len(split)} interactions",
                fix="hold out fewer interactions, or give more of them",
            )
        held[name] = RankingSplit(
            np.array(list(wanted), object),
            padded(list(wanted.values())),
            dict(seen),
            preprocess,
            [f"user {user}, {name}" for user in wanted],
        )
        for user, items in wanted.items():
            seen[user] = seen.get(user, []) + items
    target = TargetSpec("items", preprocess.item.names, len(preprocess.item.names))
    return replace(
        pairs,
        spec=replace(pairs.spec, target=target, moments=()),
        train=train,
        **held,
        preprocess=for_ranking(preprocess, seen),
        record={**pairs.record, "users": {name: len(split) for name, split in held.items()}, "cold": cold},
    )


def grouped(users: NDArray[np.object_], positions: NDArray[np.int64]) -> Lists:
    """Return each user's positions in the rows' order, users in the order of their first row."""
    lists: Lists = {}
    for user, position in zip(users.tolist(), positions.tolist(), strict=True):
        lists.setdefault(user, []).append(position)
    return lists


def _distinct(lists: Lists) -> Lists:
    """Return the lists without repetitions: an answer names an item once, and so it is wanted once."""
    return {user: list(dict.fromkeys(positions)) for user, positions in lists.items()}


def for_ranking(preprocess: IdPreprocess, seen: Lists) -> IdPreprocess:
    """Return preprocessing of users alone, who are not to be answered with what they have seen."""
    lists: list[tuple[int, ...]] = [
        (),
        *(tuple(sorted(set(seen.get(user, ())))) for user in preprocess.user.names),
    ]
    return replace(preprocess, ranking=True, seen=tuple(lists))


class _Unmet:
    """Draws items that a user did not meet: exact, without rejection.

    With a user's items sorted, p_0 < p_1 < ..., the r-th other item is r + k, where k counts the p_i - i that
    are at most r.
    """

    def __init__(self, users: NDArray[np.int64], positions: NDArray[np.int64], size: int) -> None:
        self._size = size
        keys = np.unique(users * size + positions)
        owners = keys // size
        self._first = np.searchsorted(owners, np.arange(users.max() + 2))
        rank = np.arange(len(keys)) - self._first[owners]
        self._shifted = owners * (size + 1) + keys % size - rank
        self._left = size - np.diff(self._first)
        if (full := np.flatnonzero(self._left == 0)).size:
            raise DataError(
                field="data.negatives",
                problem=f"{len(full)} user(s) met every item, so there is nothing to contrast with",
                fix="raise data.min_rating, or leave these users out",
            )

    def take(self, users_B: NDArray[np.int64], uniform_BM: NDArray[np.float64]) -> NDArray[np.int64]:
        """Return positions (B, M) for numbers in [0, 1)."""
        rank_BM = (uniform_BM * self._left[users_B][:, None]).astype(np.int64)
        before_BM = np.searchsorted(
            self._shifted, users_B[:, None] * (self._size + 1) + rank_BM, side="right"
        )
        found: NDArray[np.int64] = rank_BM + before_BM - self._first[users_B][:, None]
        return found


def _uniform(seed: int, draw: Draw, count: int) -> NDArray[np.float64]:
    """Return numbers in [0, 1), (B, count), keyed by (seed, epoch, sample).

    splitmix64 (Steele et al. 2014, doi:10.1145/2660193.2660195) over the keys, since it is one expression for
    the whole batch.
    """
    state = np.zeros((len(draw.indices), count), np.uint64)
    parts = (np.uint64(seed), np.uint64(draw.epoch), draw.indices[:, None].astype(np.uint64))
    for part in (*parts, np.arange(count, dtype=np.uint64)):
        state = (state ^ part) + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ state >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ state >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return np.asarray((state >> np.uint64(11)) * 2.0**-53)
