"""Ratings and rankings.

``{"rule": "rate", "inputs": [...], "range": [1, 5]}``: the model gives one number per pair of a user and an
item; a row is that number within the range (None: any), (N, 1).
``{"rule": "rank", "inputs": [...], "names": [...], "top": 10}``: the model gives a score for every item; a
row has the positions of the best items that the user hasn't seen, then their scores, (N, 2 K). Where fewer
than K items are left, positions are -1 and scores 0.

Shapes: N samples, I items, K answers, L items of a list.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmdist.errors import UsageError
from fmdist.tasks.decoding.run import Arrays, Run, take

OPTIONS: tuple[str, ...] = ("top",)
"""What `answer` can be told: how many items."""


def feed(rule: Mapping[str, Any], batch: Arrays) -> dict[str, NDArray[Any]]:
    """Return the inputs of one call: the data's; for a ranking those of the users."""
    return take(batch, rule["inputs"])


def rows(rule: Mapping[str, Any], run: Run, batch: Arrays) -> NDArray[np.float32]:
    """Return ratings (N, 1), or the best items (N, 2 K); ``batch["seen"]`` (N, L) is left out of these."""
    outputs = run(feed(rule, batch))
    if rule["rule"] == "rank":
        return best(outputs, batch["seen"], rule["top"])
    return outputs if rule["range"] is None else np.clip(outputs, *rule["range"]).astype(np.float32)


def decode(rule: Mapping[str, Any], rows: NDArray[np.floating[Any]]) -> list[dict[str, Any]]:
    """Return one answer per row: a rating, or items from the best on.

    >>> decode({"rule": "rank", "names": ["a", "b", "c"]}, np.array([[2, 0, 0.5, 0.25]]))
    [{'items': [{'name': 'c', 'score': 0.5}, {'name': 'a', 'score': 0.25}]}]
    """
    if rule["rule"] == "rate":
        return [{"values": {"rating": float(row[0])}} for row in rows]
    names = rule["names"]
    return [
        {
            "items": [
                {"name": names[int(position)], "score": float(score)}
                for position, score in np.reshape(row, (2, -1)).T
                if position >= 0
            ]
        }
        for row in rows
    ]


def answer(
    rule: Mapping[str, Any], run: Run, batch: Arrays, options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return `decode` of the rows, with ``options["top"]`` items where the rule ranks.

    Raises:
        UsageError: if ``top`` isn't a number of items, or there is nothing to rank.
    """
    if "top" in options:
        top, most = options["top"], len(rule.get("names", ()))
        if not isinstance(top, int) or not 1 <= top <= most:
            raise UsageError(
                field="--set top",
                problem="not a number of items" if most else "this model predicts ratings and ranks nothing",
                value=top,
                allowed=f"1 to {most}" if most else "",
            )
        rule = {**rule, "top": top}
    return decode(rule, rows(rule, run, batch))


def errors(
    rule: Mapping[str, Any], rows: NDArray[np.floating[Any]], target: NDArray[Any]
) -> NDArray[np.float64]:
    """Return how wrong each sample is, (N,): the absolute error, or 1 where no wanted item was found."""
    if rule["rule"] == "rate":
        return np.asarray(np.abs(rows - target).mean(axis=1), np.float64)
    found_NK = found(rows[:, : rule["top"]], target)
    return np.asarray(~found_NK.any(axis=1), np.float64)


def best(scores_NI: NDArray[np.float32], seen_NL: NDArray[np.int64], top: int) -> NDArray[np.float32]:
    """Return the ``top`` best items' positions and scores, (N, 2 K); equal scores in the items' order."""
    open_NI = scores_NI.astype(np.float32, copy=True)
    sample, column = np.nonzero(seen_NL >= 0)
    open_NI[sample, seen_NL[sample, column]] = -np.inf
    order_NK = np.argsort(-open_NI, axis=1, kind="stable")[:, :top]
    score_NK = np.take_along_axis(open_NI, order_NK, axis=1)
    gone_NK = np.isneginf(score_NK)
    answers = np.zeros((len(open_NI), 2, top), np.float32)
    answers[:, 0] = -1
    width = order_NK.shape[1]
    answers[:, 0, :width] = np.where(gone_NK, -1, order_NK)
    answers[:, 1, :width] = np.where(gone_NK, 0, score_NK)
    return answers.reshape(len(open_NI), 2 * top)


def found(items_NK: NDArray[np.floating[Any]], target_NL: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which answers (N, K) are among the wanted items (N, L), which are padded with -1."""
    wanted_NK = (items_NK[:, :, None] == target_NL[:, None, :]).any(axis=2)
    return np.asarray(wanted_NK & (items_NK >= 0))
