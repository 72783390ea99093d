"""The order of a text's classes, which are found in a set."""

from __future__ import annotations

import pytest

from fmdist.data.texts import _ordered


@pytest.mark.parametrize(
    ("labels", "ordered"),
    [
        (["10", "1.0", "2", "01", "1"], ["01", "1", "1.0", "2", "10"]),
        (["nan", "10", "9", "NaN"], ["10", "9", "NaN", "nan"]),
        (["b", "10", "9"], ["10", "9", "b"]),
    ],
)
def test_classes_have_one_order_whatever_the_hash_seed(labels: list[str], ordered: list[str]) -> None:
    for turn in range(len(labels)):
        # A set would hide the order that the hash gives it.
        turned = dict.fromkeys(labels[turn:] + labels[:turn])
        assert _ordered(turned) == ordered
