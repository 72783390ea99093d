"""1,797 handwritten digits of 8 x 8 grey pixels that come with scikit-learn (UCI optical digits)."""

from __future__ import annotations

import numpy as np

from fmdist.contracts import TargetSpec
from fmdist.data.base import DataConfig
from fmdist.data.preprocess import ImagePreprocess
from fmdist.data.raw import ArrayValues, RawData


class Config(DataConfig):
    """Needs no file and no option."""

    def read(self) -> RawData:
        """Return images (N, 1, 8, 8), whose published values 0 to 16 are spread over 0 to 255."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)[:, None]
        return RawData(
            values=ArrayValues(images),
            targets=digits.target.astype(np.int64),
            target=TargetSpec("class", tuple(str(digit) for digit in range(10))),
            preprocess=ImagePreprocess(shape=(1, 8, 8), mode="L"),
            sources=[f"sklearn digits:{row}" for row in range(len(images))],
        )
