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
OWN_HASH = "own_sha256"
"""The manifest's key for the hash of all its other keys."""

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


def write_stamped(path: Path, text: str) -> None:
    """Write an HTML file as `write_text` does, with the hash of the text in a comment at its end."""
    write_text(path, f"{text}\n<!-- sha256 {_hash_of(text)} -->\n")


def check_stamp(path: Path) -> None:
    """Raise `CheckpointError` unless a file is as `write_stamped` left it."""
    text, _, stamp = path.read_bytes().decode("utf-8", "replace").rpartition("\n<!-- sha256 ")
    if stamp != f"{_hash_of(text)} -->\n":
        raise CheckpointError(field=str(path), problem="the content doesn't match the SHA-256 at its end")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; refuses nan and inf, which JSON doesn't have."""
    write_text(path, _text(value))


def _text(value: Any) -> str:
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


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
    """Write ``manifest.json``: ``facts``, hash and size of every file below ``folder``, and its own hash."""
    files = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.relative_to(folder).as_posix() != MANIFEST:
            _sync(file)
            files[file.relative_to(folder).as_posix()] = {
                "sha256": sha256(file),
                "bytes": file.stat().st_size,
            }
    # Through JSON, as it will be read: keys are texts there.
    manifest = json.loads(json.dumps({**facts, "files": files}, allow_nan=False))
    write_json(folder / MANIFEST, {**manifest, OWN_HASH: _own_hash(manifest)})


def verify(folder: Path) -> dict[str, Any]:
    """Return the manifest of a committed directory after checking every file against it.

    Raises:
        CheckpointError: naming the file that is missing, truncated, changed, or outside of the directory.
    """
    manifest = read_json(folder / MANIFEST)
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not all(map(_is_recorded, files.values())):
        raise CheckpointError(
            field=str(folder / MANIFEST),
            problem="not a manifest: it doesn't say each file's bytes and sha256",
        )
    # Checkpoints of earlier versions have none.
    if OWN_HASH in manifest and not _as_sealed(folder / MANIFEST, manifest):
        raise CheckpointError(
            field=str(folder / MANIFEST), problem=f"the content doesn't match its own '{OWN_HASH}'"
        )
    for name, recorded in files.items():
        file = inside(folder, name)
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


def _as_sealed(path: Path, manifest: Mapping[str, Any]) -> bool:
    if manifest[OWN_HASH] != _own_hash(manifest):
        return False
    # The hash is of the values, and several texts can be one value: 0.50 and 0.5, or a name twice.
    return path.read_bytes() == _text(manifest).encode()


def _own_hash(manifest: Mapping[str, Any]) -> str:
    return _hash_of(json.dumps({key: manifest[key] for key in manifest if key != OWN_HASH}, sort_keys=True))


def _hash_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def inside(folder: Path, name: str) -> Path:
    """Return ``folder / name``, where ``name`` comes from a file that a stranger may have written.

    Raises:
        CheckpointError: if that is, by its name or through a link, not below ``folder``.
    """
    path = folder / name
    plain = not Path(name).is_absolute() and ".." not in Path(name).parts
    if not plain or not path.resolve().is_relative_to(folder.resolve()):
        raise CheckpointError(
            field=str(folder / MANIFEST),
            problem="it names a file outside of its directory",
            value=name,
            allowed="relative paths without '..', and no link that leads out",
        )
    return path


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
