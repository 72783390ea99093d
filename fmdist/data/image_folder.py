"""Image files in one folder per class: root/class/*.png, or root/train|val|test/class/*.png."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fmdist.contracts import TargetSpec
from fmdist.data.base import DataConfig
from fmdist.data.config import Location
from fmdist.data.image_files import SUFFIXES, FileValues, decode_image
from fmdist.data.preprocess import CHUNK, ImagePreprocess
from fmdist.data.raw import ArrayValues, BadRecord, RawData, Values, digest
from fmdist.errors import DataError, did_you_mean

REQUIRES = ("vision",)

logger = logging.getLogger(__name__)

Side = Annotated[int, Field(ge=1, le=8192)]

_PUBLISHED = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
"""Folder -> split, in the layout that is already split."""


class _File(NamedTuple):
    path: Path
    label: int
    split: str


class Config(DataConfig):
    """Classes are the folders' names in alphabetical order; unreadable files go to quarantine."""

    root: Location
    """Folder that holds one folder per class, or ``train`` (with ``val``, ``test``) that hold them."""
    image_size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)]
    """Size that the model sees, in pixels: one number for a square, or [height, width]."""
    mode: Literal["L", "RGB"] = "RGB"
    """``L`` for grey (one channel), ``RGB`` for colour (three)."""
    resize: Literal["crop", "stretch"] | None = "crop"
    """For images of another size: scale the shorter side and crop the centre, stretch, or (null) refuse."""
    cache: bool | None = None
    """Keep the decoded images in memory; null does so if they fit into ``cache_mb``."""
    cache_mb: int = Field(default=1024, ge=0)
    """Memory for decoded images, in MiB."""

    def read(self) -> RawData:
        """Decode every file once, to find unreadable ones and copies; keep them if they fit."""
        names, files = _list_files(self.root)
        size = [self.image_size] * 2 if isinstance(self.image_size, int) else self.image_size
        shape = (1 if self.mode == "L" else 3, size[0], size[1])
        like = ImagePreprocess(shape, self.mode, self.resize)
        fits = len(files) * np.prod(shape, dtype=np.int64) <= self.cache_mb * 2**20
        values, bad = _decode(
            [file.path for file in files], like, keep=bool(fits) if self.cache is None else self.cache
        )
        unreadable = {record.source for record in bad}
        good = [file for file in files if str(file.path) not in unreadable]
        return RawData(
            values=values,
            targets=np.array([file.label for file in good], np.int64),
            target=TargetSpec("class", names),
            preprocess=like,
            sources=[str(file.path) for file in good],
            bad=bad,
            published=np.array([file.split for file in good], dtype=np.str_),
        )


def _list_files(root: Path) -> tuple[tuple[str, ...], list[_File]]:
    if not root.is_dir():
        raise DataError(field="data.root", problem="no such directory", value=str(root))
    folders = _folders(root)
    published = (
        (root / "train").is_dir() and _folders(root / "train") and all(f.name in _PUBLISHED for f in folders)
    )
    parts = {folder: _PUBLISHED[folder.name] for folder in folders} if published else {root: "train"}
    names = tuple(folder.name for folder in _folders(root / "train" if published else root))
    if len(names) < 2:
        raise DataError(
            field="data.root",
            problem="fewer than two class folders",
            value=f"{root}: {', '.join(names) or 'none'}",
            allowed="one folder of images for each of two or more classes",
        )
    files = []
    for part, split in parts.items():
        for folder in _folders(part):
            if folder.name not in names:
                raise DataError(
                    field=str(folder),
                    problem="a class that the training folder doesn't have",
                    value=folder.name,
                    allowed=", ".join(names),
                    fix=did_you_mean(folder.name, names),
                )
            files += [_File(path, names.index(folder.name), split) for path in _images(folder)]
    return names, files


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    if not images:
        raise DataError(
            field=str(folder),
            problem="a class folder without images",
            value=f"{len(files)} other file(s)",
            allowed=f"files that end in {', '.join(SUFFIXES)}",
            fix="add images, or remove the folder",
        )
    if len(images) < len(files):
        logger.warning("%s: %d file(s) that are no images are ignored", folder, len(files) - len(images))
    return images


def _decode(paths: Sequence[Path], like: ImagePreprocess, keep: bool) -> tuple[Values, list[BadRecord]]:
    """Return the readable images, in memory if ``keep``, and a record of each unreadable one."""
    images, readable, digests, bad = [], [], [], []
    for path, image in zip(paths, _decoded(paths, like), strict=True):
        if isinstance(image, DataError):
            problem = image.problems[0]
            bad.append(BadRecord(str(path), str(problem).removeprefix(f"{problem.field}: ")))
            continue
        readable.append(path)
        digests.append(digest(image.tobytes()))
        if keep:
            images.append(image)
    if keep and images:
        return ArrayValues(np.stack(images)), bad
    return FileValues(readable, like, digests), bad


def _decoded(paths: Sequence[Path], like: ImagePreprocess) -> Iterator[NDArray[np.uint8] | DataError]:
    def attempt(path: Path) -> NDArray[np.uint8] | DataError:
        try:
            return decode_image(path, like)
        except DataError as error:
            return error

    # Pillow decodes outside the interpreter's lock; by chunks, so that few images wait in memory
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for start in range(0, len(paths), CHUNK):
            yield from pool.map(attempt, paths[start : start + CHUNK])
