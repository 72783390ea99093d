"""Interactions of which a user and an item are there several times."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fmdist.data.interactions import Config
from fmdist.tasks.decoding.recommendation import best
from fmdist.tasks.ranking import NDCG, Recall

USERS, ITEMS = 12, 15


def met(user: int) -> list[int]:
    """Return the items of a user, in the order of their first time."""
    return [(user * 2 + step * 4) % ITEMS for step in range(4 + user % 3)]


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    """Write 60 pairs, and every third twice more, rated otherwise and later."""
    rows = [(user, item, 1, 100 + step) for user in range(USERS) for step, item in enumerate(met(user))]
    for place, (user, item, _, when) in enumerate(rows[::3]):
        rows += [(user, item, 2, when + 1000 + place), (user, item, 3, when + 2000 + place)]
    lines = [f"u{user},i{item},{rating},{when}" for user, item, rating, when in rows]
    (tmp_path / "log.csv").write_text("\n".join(["user,item,rating,when", *lines]) + "\n")
    return {"path": tmp_path / "log.csv", "timestamp": "when"}


def make(**fields: Any) -> Config:
    return Config.model_validate(fields)


def pairs_of(split: Any) -> list[tuple[str, str]]:
    return [(user, item) for user, item in split.raw(np.arange(len(split))).tolist()]


@pytest.mark.parametrize("duplicates", ["keep", "drop"])
@pytest.mark.parametrize("holdout", ["random", "leave_one_out"])
def test_copies_of_a_pair_are_in_one_split(
    values: dict[str, Any], caplog: pytest.LogCaptureFixture, holdout: str, duplicates: str
) -> None:
    with caplog.at_level(logging.WARNING):
        data = make(**values, holdout=holdout, clean={"duplicates": duplicates}).build(0)
    parts = [pairs_of(split) for split in (data.train, data.validation, data.test)]
    assert sum(map(len, parts)) == (60 + 2 * 20 if duplicates == "keep" else 60)
    train, validation, test = map(set, parts)
    assert len(train) + len(validation) + len(test) == len(train | validation | test) == 60
    assert "may be trained on and scored on" not in caplog.text
    if duplicates == "keep":
        assert len(parts[2]) > len(test), "a held-out pair with copies"
        assert "each in the split of its first" in caplog.text


@pytest.mark.parametrize("duplicates", ["keep", "drop"])
def test_the_order_of_the_file_does_not_change_what_is_left_out(
    values: dict[str, Any], duplicates: str
) -> None:
    header, *lines = values["path"].read_text().splitlines()
    found = []
    for seed in range(4):
        shuffled = [lines[row] for row in np.random.default_rng(seed).permutation(len(lines))]
        values["path"].write_text("\n".join([header, *shuffled]) + "\n")
        data = make(**values, holdout="leave_one_out", clean={"duplicates": duplicates}).build(0)
        splits = (data.train, data.validation, data.test)
        found.append(
            [sorted(zip(pairs_of(split), split.targets[:, 0].tolist(), strict=True)) for split in splits]
        )
    assert found[1:] == found[:1] * 3
    assert {pair for pair, _ in found[0][2]} == {(f"u{u}", f"i{met(u)[-1]}") for u in range(USERS)}


@pytest.mark.parametrize("holdout", ["random", "leave_one_out"])
def test_a_perfect_ranking_of_repeated_pairs_scores_one(values: dict[str, Any], holdout: str) -> None:
    data = make(**values, feedback="implicit", holdout=holdout, clean={"duplicates": "keep"}).build(0)
    for split in (data.validation, data.test):
        # Wanted items score 1, all others 0.
        scores = np.zeros((len(split), data.spec.target.size + 1), np.float32)
        np.put_along_axis(scores, split.targets, 1, axis=1)
        rows = torch.from_numpy(best(scores[:, :-1], np.full((len(split), 1), -1), data.spec.target.size))
        for metric in (NDCG(10), Recall(10)):
            metric.update(rows, torch.from_numpy(split.targets))
            assert float(metric.compute()) == pytest.approx(1.0)
