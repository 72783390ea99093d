"""1,797 handwritten digits of 8 x 8 grey pixels that come with scikit-learn (UCI optical digits)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fmdist import component
from fmdist.contracts import TargetSpec
from fmdist.data.base import DataConfig
from fmdist.data.preprocess import ImagePreprocess
from fmdist.data.raw import ArrayValues, RawData

_SIDE = 8


class Config(DataConfig):
    """Needs no file."""

    size: int = Field(default=_SIDE, ge=_SIDE)
    """Height and width in pixels; more than 8 enlarges the images, as some models need (extra `vision`)."""

    def read(self) -> RawData:
        """Return images (N, 1, size, size), whose published values 0 to 16 are spread over 0 to 255.

        Raises:
            DependencyMissing: if they are to be enlarged and the extra ``vision`` is not installed.
        """
        from sklearn.datasets import load_digits

        digits = load_digits()
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)
        enlarged = self.size != _SIDE
        if enlarged:
            images = _enlarged(images, self.size)
        return RawData(
            values=ArrayValues(images[:, None]),
            targets=digits.target.astype(np.int64),
            target=TargetSpec("class", tuple(str(digit) for digit in range(10))),
            # Image files of 8 x 8 pixels are enlarged in the same way.
            preprocess=ImagePreprocess((1, self.size, self.size), "L", "stretch" if enlarged else None),
            sources=[f"sklearn digits:{row}" for row in range(len(images))],
        )


def _enlarged(images_NHW: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    component.require("vision", needed_by="data.size of kind 'digits'")
    from PIL import Image

    return np.stack(
        [
            np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
            for image in images_NHW
        ]
    )
