"""One line for an answer of every rule, as `fmdist predict` prints it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fmdist.cli.predict import _line
from fmdist.tasks import decoding
from fmdist.tasks.decoding import RULES

PIXELS = {"inputs": ["image"], "shape": [1, 1, 2]}
SAID: dict[str, tuple[dict[str, Any], list[float], str]] = {
    "class": ({"names": ["cat", "dog"]}, [0.0, 0.0], "cat  (cat 50.0%, dog 50.0%)"),
    "labels": ({"names": ["x", "y"], "threshold": 0.5}, [0.0, -99.0], "x  (x 50.0%, y 0.0%)"),
    "value": ({"names": ["price"]}, [2.5], "price = 2.5"),
    "likelihood": ({}, [np.log(2), 1, 1, 1], "bits_per_character = 1, perplexity = 2, accuracy = 1"),
    "reconstruct": (PIXELS, [0.25, 0.5, 1, 2], "mse = 0.25, mae = 0.5 (the reconstruction is in --json)"),
    "elbo": (
        {**PIXELS, "likelihood": "gaussian"},
        [-8.0, 2.0, -9.5, 1, 2, 3, 4],
        "elbo = -10, importance_weighted_bound = -9.5 (the reconstruction is in --json)",
    ),
    "images": (PIXELS, [1, 2, 3, 4], "the image is in --json"),
    "rate": ({"range": None}, [3.25], "rating = 3.25"),
    "rank": ({"names": ["a", "b", "c"], "top": 2}, [2, 0, 0.5, 0.25], "c, a"),
}


def test_every_rule_is_tested_here() -> None:
    assert set(SAID) | {"translate"} == set(RULES)


@pytest.mark.parametrize("rule", SAID)
def test_an_answer_is_one_line(rule: str) -> None:
    settings, row, said = SAID[rule]
    (answer,) = decoding.decode({"rule": rule, **settings}, np.array([row], np.float64))
    assert _line({"input": "x.png", **answer}) == f"x.png: {said}"


def test_a_text_is_the_line() -> None:
    assert _line({"input": "text:1", "text": "to be", "tokens": 2}) == "text:1: to be"


def test_no_label_is_said() -> None:
    (answer,) = decoding.decode(
        {"rule": "labels", "names": ["x"], "threshold": 0.5}, np.array([[-99.0]], np.float64)
    )
    assert _line({"input": "x.png", **answer}) == "x.png: (none)  (x 0.0%)"
