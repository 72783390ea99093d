"""Image files to raw rows; training and `fmdist predict` decode by this one function."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fmdist.data.preprocess import ImagePreprocess, Raw
from fmdist.data.raw import Rows
from fmdist.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")
"""File names, in lower case, that count as images."""

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB")
"""Pillow's modes of 8 bits; it would clip deeper ones without a word."""


def decode_image(path: Path, like: ImagePreprocess) -> NDArray[np.uint8]:
    """Return an image file as uint8 (C, H, W) in the shape and mode of ``like``.

    The camera's orientation is applied, transparency is dropped, and another size is treated by
    ``like.resize``.

    Raises:
        DataError: naming the file, if it is missing, unreadable, deeper than 8 bits, or of the wrong size.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            if file.mode not in _MODES:
                raise DataError(
                    field=str(path),
                    problem="pixels of more than 8 bits",
                    value=file.mode,
                    fix="convert the image to 8 bits",
                )
            # Pillow warns about transparent palettes unless they pass through RGBA
            opaque = file.convert("RGBA") if "transparency" in file.info else file
            image = ImageOps.exif_transpose(opaque).convert(like.mode)
    except FileNotFoundError:
        raise DataError(field=str(path), problem="no such file") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(field=str(path), problem=f"not a readable image ({error})") from None
    pixels = np.asarray(_resized(image, like, path))
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _resized(image: Image.Image, like: ImagePreprocess, path: Path) -> Image.Image:
    from PIL import Image, ImageOps

    height, width = like.shape[1:]
    if image.size == (width, height):
        return image
    if like.resize == "crop":
        return ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    if like.resize == "stretch":
        return image.resize((width, height), Image.Resampling.BILINEAR)
    raise DataError(
        field=str(path),
        problem="an image of the wrong shape",
        value=f"{image.height} x {image.width}",
        allowed=f"{height} x {width} (height x width), as in training",
    )


class FileValues:
    """Images that are decoded whenever they are asked for, for sets that don't fit into memory."""

    in_memory = False

    def __init__(self, paths: Sequence[Path], like: ImagePreprocess, digests: Sequence[bytes]) -> None:
        self.paths = paths
        self.like = like
        self._digests = digests

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, rows: Rows) -> Raw:
        """Decode these files to uint8 (B, C, H, W)."""
        images = np.empty((len(rows), *self.like.shape), np.uint8)
        for position, row in enumerate(rows):
            images[position] = decode_image(self.paths[row], self.like)
        return images

    def digests(self) -> Sequence[bytes]:
        """Return the hashes that were taken of the decoded images when the files were first read."""
        return self._digests
