from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from fmdist.contracts import InputSpec
from fmdist.data.preprocess import Column, ImagePreprocess, Preprocess, TablePreprocess, moments
from fmdist.errors import DataError

COLUMNS = TablePreprocess((Column("age"), Column("city", categories=())), ignored=("buys",))


def people(*rows: tuple[float, str]) -> np.ndarray[Any, Any]:
    return np.array(list(rows), COLUMNS.dtype)


def test_images_are_scaled_and_standardized_per_channel() -> None:
    images = np.random.default_rng(0).integers(0, 256, (50, 3, 4, 5), dtype=np.uint8)
    fitted = ImagePreprocess((3, 4, 5), "RGB").fit([images[:20], images[20:]], normalize=True)
    pixels = images / 255
    assert np.allclose(fitted.mean, pixels.mean(axis=(0, 2, 3)), rtol=1e-12)
    assert np.allclose(fitted.std, pixels.std(axis=(0, 2, 3)), rtol=1e-12)
    expected = (pixels - np.reshape(fitted.mean, (3, 1, 1))) / np.reshape(fitted.std, (3, 1, 1))
    result = fitted(images)["image"]
    assert result.dtype == np.float32
    assert np.abs(result - expected).max() < 1e-6
    assert fitted.inputs == (InputSpec("image", (3, 4, 5)),)


def test_a_constant_channel_becomes_zero() -> None:
    images = np.full((3, 1, 2, 2), 7, np.uint8)
    result = ImagePreprocess((1, 2, 2), "L").fit([images], normalize=True)(images)["image"]
    assert np.abs(result).max() < 1e-6


def test_images_without_normalization_are_between_0_and_1() -> None:
    images = np.array([0, 51, 255, 102], np.uint8).reshape(1, 1, 2, 2)
    result = ImagePreprocess((1, 2, 2), "L").fit([images], normalize=False)(images)["image"]
    assert np.allclose(result.ravel(), [0, 0.2, 1, 0.4])


@pytest.mark.parametrize("wrong", [np.zeros((2, 1, 3, 2), np.uint8), np.zeros((2, 1, 2, 2), np.float32)])
def test_images_of_another_shape_or_type_are_refused(wrong: np.ndarray[Any, Any]) -> None:
    fitted = ImagePreprocess((1, 2, 2), "L").fit([np.zeros((1, 1, 2, 2), np.uint8)], normalize=False)
    with pytest.raises(DataError, match="wrong shape or type"):
        fitted(wrong)


def test_tables_are_standardized_and_one_hot() -> None:
    rows = people((10, "Kiel"), (20, "Bonn"), (30, ""), (40, "Kiel"))
    fitted = COLUMNS.fit([rows[:3], rows[3:]], normalize=True)
    assert fitted.inputs == (InputSpec("features", (4,)),)
    features = fitted(rows)["features"]
    assert features.dtype == np.float32
    assert np.allclose(features[:, 0], (np.array([10, 20, 30, 40]) - 25) / np.sqrt(125))
    assert features[:, 1:].tolist() == [[0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 1]]


@pytest.mark.parametrize("constant", [0.1, -3.3, 0.0, 1e300])
def test_a_constant_column_is_zero_whatever_comes_later(constant: float) -> None:
    # The mean of 1,000 times 0.1 isn't 0.1 and its deviation not 0, as floats add up.
    rows = people(*[(constant, "Kiel")] * 1000)
    fitted = COLUMNS.fit([rows], normalize=True)
    assert fitted.columns[0].mean == constant
    assert fitted(rows)["features"][:, 0].tolist() == [0.0] * 1000
    again = Preprocess.from_json(json.loads(json.dumps(fitted.to_json())))
    assert again(people((constant + 1, "Kiel"), (-1e308, "Kiel")))["features"].tolist() == [[0, 1], [0, 1]]


def test_moments_of_a_constant_are_exact() -> None:
    values = np.array([[0.1, 1.0], [0.1, 2.0], [0.1, 6.0]] * 100)
    mean, std = moments(values)
    assert mean.tolist() == [0.1, pytest.approx(3.0)]
    assert std.tolist() == [0.0, pytest.approx(np.sqrt(14 / 3))]


def test_a_category_that_training_did_not_see_is_all_zeros() -> None:
    fitted = COLUMNS.fit([people((1, "Kiel"), (2, "Bonn"))], normalize=False)
    assert fitted(people((3, "Rome")))["features"].tolist() == [[3, 0, 0]]


def test_rows_of_other_columns_are_refused() -> None:
    fitted = COLUMNS.fit([people((1, "Kiel"), (2, "Bonn"))], normalize=True)
    with pytest.raises(DataError, match="wrong columns"):
        fitted(np.zeros(3, [("age", np.float64)]))


@pytest.mark.parametrize(
    "preprocess",
    [
        ImagePreprocess((1, 2, 3), "L", "crop", (0.1,), (0.3,)),
        TablePreprocess((Column("a", 0.1, 1 / 3), Column("b", categories=("", "x"))), ("t",), ";"),
    ],
)
def test_json_round_trip_is_exact(preprocess: Preprocess) -> None:
    assert Preprocess.from_json(json.loads(json.dumps(preprocess.to_json()))) == preprocess


def test_an_unknown_kind_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="'audio'"):
        Preprocess.from_json({"kind": "audio"})
