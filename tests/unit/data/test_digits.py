"""scikit-learn's digits, as they are and enlarged."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from fmdist.data import digits
from fmdist.data.image_files import decode_image
from fmdist.data.preprocess import ImagePreprocess


def pixels(size: int) -> NDArray[np.uint8]:
    values = digits.Config(size=size).read().values
    return np.asarray(values.take(np.arange(len(values))))


def test_images_keep_their_size_unless_told_otherwise() -> None:
    assert digits.Config().read().preprocess == ImagePreprocess((1, 8, 8), "L")
    assert pixels(8).shape == (1797, 1, 8, 8)


def test_images_are_enlarged() -> None:
    small, large = pixels(8), pixels(32)
    assert large.shape == (1797, 1, 32, 32)
    assert large.dtype == np.uint8
    blocks = large.reshape(1797, 1, 8, 4, 8, 4).mean(axis=(3, 5))
    # What was light stays light, and nothing is lighter than the lightest pixel was.
    assert np.corrcoef(blocks.ravel(), small.ravel())[0, 1] > 0.95
    assert (large.max(axis=(1, 2, 3)) <= small.max(axis=(1, 2, 3))).all()


def test_image_files_of_the_published_size_are_enlarged_alike(tmp_path: Path) -> None:
    Image.fromarray(pixels(8)[3, 0]).save(tmp_path / "three.png")
    preprocess = digits.Config(size=32).read().preprocess
    assert isinstance(preprocess, ImagePreprocess)
    np.testing.assert_array_equal(decode_image(tmp_path / "three.png", preprocess), pixels(32)[3])


def test_images_are_not_made_smaller() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 8"):
        digits.Config(size=7)
