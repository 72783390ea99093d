from __future__ import annotations

import base64
import io
from typing import Any

import matplotlib.image
import numpy as np
import pytest

from fmdist.reports import plots
from fmdist.reports.examples import data_uri
from fmdist.reports.layout import duration, facts, number, size


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "n/a"),
        (True, "yes"),
        (1234567, "1,234,567"),
        (0.98518, "0.9852"),
        (0.0, "0.0000"),
        (0.00012, "0.00012"),
        (-55.204, "-55.20"),
        (12345.6, "12,346"),
        (float("nan"), "nan"),
        ("text", "text"),
    ],
)
def test_numbers(value: Any, expected: str) -> None:
    assert number(value) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.0042, "4.2 ms"), (12.34, "12.3 s"), (245.0, "4 min 05 s"), (7380.0, "2 h 03 min"), (None, "n/a")],
)
def test_durations(seconds: float | None, expected: str) -> None:
    assert duration(seconds) == expected


@pytest.mark.parametrize(
    ("count", "expected"), [(999, "999 bytes"), (1240, "1.24 kB"), (46_700_000, "46.7 MB"), (None, "n/a")]
)
def test_sizes(count: int | None, expected: str) -> None:
    assert size(count) == expected


def test_facts_flatten_and_cut() -> None:
    table = facts(
        {"sizes": {"train": 7, "test": 3}, "split": {"hash": "ab", "names": []}, "long": list(range(50))}
    )
    rows = {label: value for label, value in table.rows}
    assert rows["sizes"] == "train 7, test 3"
    assert rows["split · hash"] == "ab"
    assert rows["split · names"] == "none"
    assert rows["long"].endswith("39, ... (50 in all)")


def test_a_plot_takes_its_colours_from_the_page() -> None:
    svg = plots.curves([plots.Line("train", [1, 2], [2.0, 1.0])], "epoch", "loss")
    assert svg.startswith("<svg")
    assert "var(--first)" in svg
    assert "#00000" not in svg
    assert len(svg) < 20_000


@pytest.mark.parametrize(("lowest", "logarithmic"), [(1.0, True), (0.0, False), (50.0, False)])
def test_the_axis_is_logarithmic_for_a_wide_positive_range(lowest: float, logarithmic: bool) -> None:
    svg = plots.curves([plots.Line("train", [1, 2], [100.0, lowest])], "epoch", "loss", log=True)
    assert (">5<" in svg) == logarithmic
    assert (">80<" in svg) != logarithmic


def test_a_label_is_text_and_not_mathematics() -> None:
    assert "$x_{" in plots.curves([plots.Line("train", [1], [1.0])], "epoch", "$x_{")


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((1, 8, 8), (8, 8)), ((3, 8, 8), (8, 8)), ((3, 200, 300), (50, 75)), ((1, 3, 400), (1, 80))],
)
def test_images_keep_their_pixels_or_are_reduced(
    shape: tuple[int, int, int], expected: tuple[int, int]
) -> None:
    image = np.full(shape, 51, dtype=np.uint8)
    encoded = data_uri(image).removeprefix("data:image/png;base64,")
    pixels = matplotlib.image.imread(io.BytesIO(base64.b64decode(encoded)), format="png")
    assert pixels.shape[:2] == expected
    np.testing.assert_allclose(pixels[..., :3], 0.2, atol=1e-6)
