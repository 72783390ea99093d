"""CIFAR-10: 60,000 colour images, 32 x 32, of ten classes (Krizhevsky 2009), in both published layouts."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmdist.contracts import TargetSpec
from fmdist.data.base import DataConfig
from fmdist.data.config import Location
from fmdist.data.download import find_or_download
from fmdist.data.preprocess import ImagePreprocess
from fmdist.data.raw import ArrayValues, RawData
from fmdist.errors import DataError

_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
_PIXELS = 3 * 32 * 32
_LAYOUTS = {"cifar-10-batches-py": "", "cifar-10-batches-bin": ".bin"}
"""Folder -> suffix of its files."""


class Config(DataConfig):
    """The published test split is kept; validation is cut from the training split."""

    root: Location = Path("data")
    """Folder that holds ``cifar-10-batches-py`` or ``cifar-10-batches-bin``, or one of the two itself."""
    download: bool = False
    """Download the data set into ``root`` if it is missing, through torchvision."""

    def read(self) -> RawData:
        """Return images (N, 3, 32, 32), training batches first."""
        files = find_or_download(
            "CIFAR10", self.root, self.download, lambda: _find(self.root), looked_for=_BATCHES
        )
        batches = [_read_binary(file) if file.suffix == ".bin" else _read_pickle(file) for file in files]
        sizes = [len(labels) for _, labels in batches]
        return RawData(
            values=ArrayValues(np.concatenate([images for images, _ in batches])),
            targets=np.concatenate([labels for _, labels in batches]),
            target=TargetSpec("class", _NAMES),
            preprocess=ImagePreprocess(shape=(3, 32, 32), mode="RGB"),
            sources=[f"{file}:{row}" for file, size in zip(files, sizes, strict=True) for row in range(size)],
            published=np.repeat(["train"] * 5 + ["test"], sizes),
        )


def _find(root: Path) -> list[Path | None]:
    """Return the batches of the layout of which most is there."""
    found: list[Path | None] = [None] * len(_BATCHES)
    for folder, suffix in _LAYOUTS.items():
        for place in (root / folder, root):
            files = [place / f"{batch}{suffix}" for batch in _BATCHES]
            here = [file if file.is_file() else None for file in files]
            found = min(found, here, key=lambda candidates: candidates.count(None))
    return found


def _read_binary(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    content = np.frombuffer(file.read_bytes(), np.uint8)
    if len(content) == 0 or len(content) % (1 + _PIXELS):
        raise DataError(
            field=str(file),
            problem="the file is empty, truncated or has bytes left over",
            value=f"{len(content)} bytes",
            allowed=f"a multiple of {1 + _PIXELS} bytes, one label and {_PIXELS} pixels each",
        )
    records = content.reshape(-1, 1 + _PIXELS)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].astype(np.int64)


def _read_pickle(file: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        with file.open("rb") as stream:
            batch = _ArrayUnpickler(stream, encoding="bytes").load()
        content = {_text(key): value for key, value in batch.items()}
        images, labels = np.asarray(content["data"]), np.asarray(content["labels"])
    # a damaged pickle can raise nearly anything
    except Exception as error:
        raise DataError(
            field=str(file),
            problem=f"not a CIFAR-10 batch ({type(error).__name__}: {error})",
            fix="get the file again",
        ) from None
    if images.dtype != np.uint8 or images.shape != (len(labels), _PIXELS) or labels.dtype.kind not in "iu":
        raise DataError(
            field=str(file),
            problem="images or labels of the wrong shape or type",
            value=f"images {images.dtype} {images.shape}, labels {labels.dtype} {labels.shape}",
            allowed=f"images uint8 (N, {_PIXELS}) and N whole numbers",
        )
    return images.reshape(-1, 3, 32, 32), labels.astype(np.int64)


class _ArrayUnpickler(pickle.Unpickler):
    """Builds numbers, strings, lists, dicts and NumPy arrays; what names anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED:
            return _ALLOWED[module, name]
        message = f"it names {module}.{name}, which no CIFAR-10 batch needs"
        raise pickle.UnpicklingError(message)


def _latin1(text: str, encoding: str) -> bytes:
    """Return the bytes that protocol 2 writes as text; stands for ``_codecs.encode``."""
    if encoding != "latin1":
        message = f"encoding {encoding!r}"
        raise pickle.UnpicklingError(message)
    return text.encode(encoding)


_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], Any] = {
    # the published files name the first; NumPy 2 moved it
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
}


def _text(key: bytes | str) -> str:
    return key.decode() if isinstance(key, bytes) else key
