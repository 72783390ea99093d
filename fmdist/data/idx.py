"""The IDX files of MNIST and its successors (format: LeCun, Cortes, Burges, *The MNIST database*)."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from fmdist.contracts import TargetSpec
from fmdist.data.base import DataConfig
from fmdist.data.config import Location
from fmdist.data.download import find_or_download
from fmdist.data.preprocess import ImagePreprocess
from fmdist.data.raw import ArrayValues, RawData
from fmdist.errors import DataError

_UINT8 = 0x08
_FILES = {"train": "train", "test": "t10k"}
"""Published split -> how its file names begin."""


class IdxConfig(DataConfig):
    """28 x 28 grey images in four IDX files."""

    dataset: ClassVar[str]
    """The name of torchvision's class, and of the folder in its layout."""
    names: ClassVar[tuple[str, ...]]

    root: Location = Path("data")
    """Folder of the four published files, gzipped or not, or of torchvision's layout of them."""
    download: bool = False
    """Download missing files into ``root``, through torchvision."""

    def read(self) -> RawData:
        """Return images (N, 1, 28, 28), training files first; the published test split is kept."""
        folders = (self.root, self.root / self.dataset / "raw")
        parts = [
            f"{part}-{content}" for part in _FILES.values() for content in ("images-idx3", "labels-idx1")
        ]
        files = find_or_download(
            self.dataset,
            self.root,
            self.download,
            lambda: [_find(folders, f"{part}-ubyte") for part in parts],
            looked_for=[f"{part}-ubyte(.gz)" for part in parts],
        )
        images = [_images(file) for file in files[0::2]]
        labels = [_labels(file, len(image)) for file, image in zip(files[1::2], images, strict=True)]
        return RawData(
            values=ArrayValues(np.concatenate(images)[:, None]),
            targets=np.concatenate(labels).astype(np.int64),
            target=TargetSpec("class", self.names),
            preprocess=ImagePreprocess(shape=(1, 28, 28), mode="L"),
            sources=[
                f"{file}:{row}"
                for file, image in zip(files[0::2], images, strict=True)
                for row in range(len(image))
            ],
            published=np.repeat(list(_FILES), [len(image) for image in images]),
        )


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Return the array of bytes in an IDX file, gzipped if its name ends in ``.gz``.

    Raises:
        DataError: if it is damaged, truncated, or of another type than unsigned bytes.
    """
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(field=str(path), problem=f"can't be read ({error})") from None
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _UINT8:
        raise DataError(
            field=str(path),
            problem="not an IDX file of unsigned bytes",
            value=content[:4].hex(),
            allowed="a file that begins with 000008",
        )
    dimensions = content[3]
    start = 4 + 4 * dimensions
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, start, 4))
    if len(content) != start + math.prod(shape):
        raise DataError(
            field=str(path),
            problem="the file is truncated or has bytes left over",
            value=f"{len(content)} bytes",
            allowed=f"{start + math.prod(shape)} bytes for the shape {shape}",
        )
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _find(folders: tuple[Path, ...], name: str) -> Path | None:
    candidates = (folder / f"{name}{suffix}" for folder in folders for suffix in ("", ".gz"))
    return next((file for file in candidates if file.is_file()), None)


def _images(file: Path) -> NDArray[np.uint8]:
    images = read_idx(file)
    if images.shape[1:] != (28, 28):
        raise DataError(
            field=str(file), problem="images of the wrong shape", value=images.shape, allowed="(N, 28, 28)"
        )
    return images


def _labels(file: Path, size: int) -> NDArray[np.uint8]:
    labels = read_idx(file)
    if labels.shape != (size,):
        raise DataError(
            field=str(file),
            problem="the labels don't fit the images",
            value=labels.shape,
            allowed=f"({size},)",
        )
    return labels
