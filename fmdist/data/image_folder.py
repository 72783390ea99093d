"""Image files in one folder per class: root/class/*.png, or root/train|val|test/class/*.png."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fmdist.contracts import TargetSpec
from fmdist.data.base import DataConfig
from fmdist.data.class_folders import list_class_files
from fmdist.data.config import Location
from fmdist.data.image_files import SUFFIXES, FileValues, decode_image
from fmdist.data.preprocess import CHUNK, ImagePreprocess
from fmdist.data.raw import ArrayValues, BadRecord, RawData, Values, digest
from fmdist.errors import DataError

REQUIRES = ("vision",)

Side = Annotated[int, Field(ge=1, le=8192)]


class Config(DataConfig):
    """Classes are the folders' names in alphabetical order; unreadable files go to quarantine."""

    root: Location
    """Folder that holds one folder per class, or ``train`` (with ``val``, ``test``) that hold them."""
    image_size: Side | Annotated[list[Side], Field(min_length=2, max_length=2)]
    """Size that the model sees, in pixels: one number for a square, or [height, width]."""
    leave_out: list[str] = Field(default_factory=list)
    """Names of folders that are no class."""
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
        names, files = list_class_files(self.root, SUFFIXES, self.leave_out)
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
            targets=np.array([names.index(file.label) for file in good], np.int64),
            target=TargetSpec("class", tuple(names)),
            preprocess=like,
            sources=[str(file.path) for file in good],
            bad=bad,
            published=np.array([file.split for file in good], dtype=np.str_),
        )


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
