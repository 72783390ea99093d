"""Files that are whole or absent: atomic writes, hashed directories, locks.

A committed directory holds ``manifest.json`` with the SHA-256 of every other file. It is filled under a
hidden temporary name, fsynced, and renamed into place, so that a kill or a full disk leaves the old state
or the new.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from fmdist.errors import CheckpointError

MANIFEST = "manifest.json"
LOCK = ".lock"

_held: set[int] = set()
"""Descriptors of the locks that this process holds."""


def sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write a file so that readers see the old content or the new, never a part."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        _sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; refuses nan and inf, which JSON doesn't have."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        CheckpointError: if it is missing or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(field=str(path), problem="file not found") from None
    except ValueError as error:
        raise CheckpointError(field=str(path), problem=f"not valid JSON ({error})") from None


@contextmanager
def committed_directory(path: Path, facts: Mapping[str, Any]) -> Iterator[Path]:
    """Yield an empty folder to fill; on leaving, commit it as ``path`` with a manifest of ``facts``.

    Nothing of it remains if the body raises or the disk is full. An existing ``path`` is refused.
    """
    if path.exists():
        raise CheckpointError(field=str(path), problem="the directory exists and is never overwritten")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        seal(temporary, facts)
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(path.parent)


def seal(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write ``manifest.json``: ``facts`` and the hash and size of every file below ``folder``."""
    files = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.relative_to(folder).as_posix() != MANIFEST:
            _sync(file)
            files[file.relative_to(folder).as_posix()] = {
                "sha256": sha256(file),
                "bytes": file.stat().st_size,
            }
    write_json(folder / MANIFEST, {**facts, "files": files})


def verify(folder: Path) -> dict[str, Any]:
    """Return the manifest of a committed directory after checking every file against it.

    Raises:
        CheckpointError: naming the file that is missing, truncated or changed.
    """
    manifest = read_json(folder / MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not all(map(_is_recorded, files.values())):
        raise CheckpointError(
            field=str(folder / MANIFEST),
            problem="not a manifest: it doesn't say each file's bytes and sha256",
        )
    for name, recorded in files.items():
        file = folder / name
        if not file.is_file():
            raise CheckpointError(field=str(file), problem="the file is missing from its directory")
        if file.stat().st_size != recorded["bytes"]:
            raise CheckpointError(
                field=str(file),
                problem="the file is truncated or was changed",
                value=file.stat().st_size,
                allowed=f"{recorded['bytes']} bytes",
            )
        if sha256(file) != recorded["sha256"]:
            raise CheckpointError(
                field=str(file), problem="the content doesn't match its SHA-256 in manifest.json"
            )
    return dict(manifest)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders that a killed process left; call it under `lock` only."""
    for path in folder.glob(".*.tmp"):
        shutil.rmtree(path, ignore_errors=True)
        with suppress(OSError):
            path.unlink(missing_ok=True)


@contextmanager
def lock(folder: Path, name: str = LOCK, seconds: float = 0.0) -> Iterator[None]:
    """Hold ``folder`` for this process; the kernel releases it even after a SIGKILL.

    Args:
        folder: is made if it isn't there.
        name: of the file, if a folder is held for more than one purpose.
        seconds: how long to wait for another process to let go.

    Raises:
        CheckpointError: if another process still holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o666)
    _held.add(descriptor)
    try:
        if not _locked(descriptor, seconds):
            raise CheckpointError(
                field=str(folder),
                problem="another process is writing here",
                fix="wait for it, or give this one another directory with -o",
            )
        yield
    finally:
        if descriptor in _held:
            _held.remove(descriptor)
            os.close(descriptor)


def _locked(descriptor: int, seconds: float) -> bool:
    until = time.monotonic() + seconds
    while True:
        # Asked again and again: a call that blocks could neither be bounded nor be ended by every signal.
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        if time.monotonic() >= until:
            return False
        time.sleep(0.05)


def _let_go() -> None:
    # A forked worker shares its parent's lock, and would hold it on after the parent was killed.
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go)


def _is_recorded(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("bytes"), int) and "sha256" in entry


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
