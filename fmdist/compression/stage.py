"""Stages that are done once: a marker says from what, so that a stopped compression goes on where it was.

``stages/NN-name/done.json`` holds ``key`` (SHA-256 of the settings and the hashes of the input files), the
``record`` that the stage returned, the SHA-256 of every file that it wrote, and its ``seconds``. It is
written last; a stage without a valid marker, or whose files were changed, is done again. While it is being
done, ``begun.json`` holds the key, and what lies beside it (checkpoints) is gone on from.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmdist import storage
from fmdist.errors import CheckpointError

MARKER, BEGUN = "done.json", "begun.json"
FOLDER = "stages"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Done:
    """A finished stage."""

    name: str
    record: dict[str, Any]
    files: dict[str, str]
    """Path below the artifact -> SHA-256."""
    seconds: float


Work = Callable[[Path], tuple[dict[str, Any], list[str]]]
"""Does a stage, in whose folder it may keep what it needs to go on; returns its record (JSON values) and the
files it wrote, relative to the artifact."""


class Stages:
    """Runs the stages of one artifact in order and numbers them.

    Args:
        output: the artifact's folder.
        between: called before each stage; may raise, to end the work there.
        again: a stage's name; it and all after it are done again.
    """

    def __init__(
        self, output: Path, between: Callable[[], None] = lambda: None, again: str | None = None
    ) -> None:
        self.output = output
        self.done: list[Done] = []
        self._between = between
        self._again_from, self._again = again, False

    def run(self, name: str, inputs: Mapping[str, Any], work: Work) -> Done:
        """Return the stage's outcome, from its marker if ``inputs`` and its files are unchanged.

        Args:
            name: what the stage does; its folder is ``stages/NN-name``.
            inputs: settings and hashes that decide the outcome, as JSON values.
            work: does it.
        """
        self._between()
        numbered = f"{len(self.done) + 1:02d}-{name}"
        folder = self.output / FOLDER / numbered
        key = _digest(inputs)
        self._again = self._again or name == self._again_from
        found = None if self._again else self._finished(folder / MARKER, numbered, key)
        if found is None:
            log.info("%s", numbered)
            found = self._do(folder, numbered, key, work)
        else:
            log.info("%s: already done", numbered)
        self.done.append(found)
        return found

    def folder(self, name: str) -> Path:
        """Return the folder of a finished stage, by its numbered name."""
        return self.output / FOLDER / name

    def _do(self, folder: Path, numbered: str, key: str, work: Work) -> Done:
        # What another stage has left here is nothing to go on from, and what is done again starts anew.
        if folder.is_dir() and (self._again or _key(folder / BEGUN) != key):
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        storage.write_json(folder / BEGUN, {"key": key})
        # From here until it is sealed again, the folder is no finished artifact.
        (self.output / storage.MANIFEST).unlink(missing_ok=True)
        (folder / MARKER).unlink(missing_ok=True)
        start = time.perf_counter()
        record, files = work(folder)
        hashes = {file: storage.sha256(self.output / file) for file in files}
        done = Done(numbered, record, hashes, round(time.perf_counter() - start, 3))
        storage.write_json(
            folder / MARKER,
            {"key": key, "seconds": done.seconds, "record": done.record, "files": done.files},
        )
        (folder / BEGUN).unlink()
        return done

    def _finished(self, marker: Path, numbered: str, key: str) -> Done | None:
        if not marker.is_file():
            return None
        try:
            value = storage.read_json(marker)
        except CheckpointError:
            return None
        if value["key"] != key:
            return None
        for file, recorded in value["files"].items():
            path = self.output / file
            if not path.is_file() or storage.sha256(path) != recorded:
                log.warning("%s: %s is missing or was changed; doing the stage again", numbered, file)
                return None
        return Done(numbered, value["record"], value["files"], value["seconds"])


def _key(file: Path) -> str | None:
    try:
        return str(storage.read_json(file)["key"]) if file.is_file() else None
    except (CheckpointError, KeyError):
        return None


def _digest(inputs: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, allow_nan=False).encode()).hexdigest()
