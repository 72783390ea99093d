"""Copies of a run's checkpoints on a store that outlives the machine: S3, GCS, HDFS, a mounted folder.

A store has no renames that are whole or nothing, so a copy is committed by its manifest, which comes last and
is removed first.
"""

from __future__ import annotations

import logging
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from fmdist import storage
from fmdist.errors import CheckpointError

FIELD = "train.checkpoint.store"

STEP = re.compile(r"step-\d{10}(-evaluated)?")
"""Names of checkpoints."""

logger = logging.getLogger(__name__)


class Mirror:
    """The copies of a run's committed directories.

    Args:
        url: of a folder, in any scheme that fsspec knows: ``s3://bucket/runs``, ``file:///mnt/runs``.
        run: the run's name, for a folder of its own there.

    Raises:
        CheckpointError: if the scheme is unknown or its package isn't installed.
    """

    def __init__(self, url: str, run: str) -> None:
        self.url = f"{url.rstrip('/')}/{run}"
        try:
            system, path = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise CheckpointError(
                field=FIELD,
                problem=f"no such store ({' '.join(str(error).split())[:200]})",
                value=url,
                fix="name a folder such as s3://bucket/folder; install what its scheme needs (s3fs, gcsfs)",
            ) from None
        self._system: Any = system
        self._path: str = path.rstrip("/")

    def check(self) -> None:
        """Write and remove a file.

        Raises:
            CheckpointError: if that can't be done.
        """
        probe = f"{self._path}/.probe-{uuid.uuid4().hex[:8]}"
        with _told(self.url, "can't be written"):
            self._system.makedirs(self._path, exist_ok=True)
            self._system.pipe_file(probe, b"fmdist")
            self._system.rm_file(probe)

    def follow(self, folders: Sequence[Path]) -> None:
        """Copy those of the directories that aren't there yet, and remove the copies of all others.

        A store that fails is named in a warning, and the next call tries again: training is worth more.
        """
        try:
            there = set(self.names())
            for folder in folders:
                if folder.name not in there:
                    self.push(folder)
            for name in there - {folder.name for folder in folders}:
                self.remove(name)
        except CheckpointError as error:
            logger.warning("%s. The next checkpoint tries again", error)

    def push(self, folder: Path) -> None:
        """Copy a committed directory.

        Raises:
            CheckpointError: if the store doesn't take it.
        """
        there = f"{self._path}/{folder.name}"
        files = sorted(file for file in folder.iterdir() if file.name != storage.MANIFEST)
        with _told(self.url, "can't be written"):
            self._system.makedirs(there, exist_ok=True)
            for file in [*files, folder / storage.MANIFEST]:
                self._system.put_file(str(file), f"{there}/{file.name}")

    def remove(self, name: str) -> None:
        """Remove a copy, if it is there."""
        there = f"{self._path}/{name}"
        with _told(self.url, "can't be written"):
            if self._system.exists(f"{there}/{storage.MANIFEST}"):
                self._system.rm_file(f"{there}/{storage.MANIFEST}")
            if self._system.exists(there):
                self._system.rm(there, recursive=True)

    def names(self) -> list[str]:
        """Return the names of the whole copies, sorted."""
        with _told(self.url, "can't be read"):
            self._system.invalidate_cache()
            if not self._system.exists(self._path):
                return []
            entries = [entry.rstrip("/") for entry in self._system.ls(self._path, detail=False)]
            whole = [entry for entry in entries if self._system.exists(f"{entry}/{storage.MANIFEST}")]
            names = [entry.rpartition("/")[2] for entry in whole]
            # What else lies there is somebody's, and must not be fetched or removed.
            return sorted(filter(STEP.fullmatch, names))

    def pull(self, name: str, folder: Path) -> bool:
        """Bring a copy back as ``folder / name``; return False, with a warning, if it is damaged.

        Raises:
            CheckpointError: if the store can't be read.
        """
        temporary = folder / f".{name}.{uuid.uuid4().hex[:8]}.tmp"
        temporary.mkdir(parents=True)
        try:
            there = f"{self._path}/{name}"
            with _told(self.url, "can't be read"):
                for entry in self._system.ls(there, detail=False):
                    self._system.get_file(entry, str(temporary / entry.rpartition("/")[2]))
            try:
                storage.verify(temporary)
            except CheckpointError as error:
                logger.warning("the copy of %s in %s is damaged (%s)", name, self.url, error)
                return False
            temporary.rename(folder / name)
            return True
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def check_store(url: str | None, run: str) -> None:
    """See `Mirror.check`; None is no store."""
    if url is not None:
        Mirror(url, run).check()


@contextmanager
def _told(url: str, problem: str) -> Iterator[None]:
    """Turn what a store raises into an error that names it; every scheme has exceptions of its own."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(field=FIELD, problem=f"the store {problem} ({reason})", value=url) from error
