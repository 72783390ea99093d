from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fmdist.errors import UsageError
from fmdist.tasks import decoding
from fmdist.tasks.decoding.direct import decode, sigmoid, softmax


def test_a_class_is_the_largest_softmax() -> None:
    answers = decode({"rule": "class", "names": ["cat", "dog"]}, np.log(np.array([[0.2, 0.8], [0.9, 0.1]])))
    assert [answer["label"] for answer in answers] == ["dog", "cat"]
    assert answers[0]["probability"] == pytest.approx(0.8)
    assert answers[1]["probabilities"] == pytest.approx({"cat": 0.9, "dog": 0.1})


def test_labels_are_those_from_the_threshold_on() -> None:
    rule = {"rule": "labels", "names": ["x", "y"], "threshold": 0.6}
    answers = decode(rule, np.array([[0.0, 3.0], [-9.0, 0.0]]))
    assert [answer["labels"] for answer in answers] == [["y"], []]
    assert answers[0]["probabilities"]["x"] == pytest.approx(0.5)


def test_values_are_named() -> None:
    rule = {"rule": "value", "names": ["u", "v"]}
    assert decode(rule, np.array([[1.0, 2.0]])) == [{"values": {"u": 1.0, "v": 2.0}}]


def test_extreme_outputs_stay_probabilities() -> None:
    extreme = np.array([[1e4, -1e4, 0.0]], np.float32)
    assert softmax(extreme).tolist() == [[1, 0, 0]]
    assert sigmoid(extreme).tolist() == [[1, 0, 0.5]]


def test_probabilities_sum_to_one_in_float64() -> None:
    outputs = np.random.default_rng(0).normal(0, 5, (100, 7)).astype(np.float32)
    assert np.abs(softmax(outputs).sum(axis=1) - 1).max() < 1e-12


IMAGES = {"rule": "images", "inputs": ["image"], "shape": [1, 1, 2], "latent": 2, "draws": 1, "seed": 0}


def drawn(**options: Any) -> list[dict[str, Any]]:
    return decoding.answer(IMAGES, lambda inputs: inputs["noise"], {"index": np.arange(2)}, options)


@pytest.mark.parametrize("seed", ["abc", -1, 1.7, True, 2**63])
def test_a_seed_is_a_whole_number(seed: Any) -> None:
    with pytest.raises(UsageError, match="allowed: a whole number from 0 to 9223372036854775807") as caught:
        drawn(seed=seed)
    assert caught.value.problems[0].field == "--set seed"


def test_another_seed_makes_other_images() -> None:
    assert drawn() == drawn(seed=0) != drawn(seed=2**63 - 1)
