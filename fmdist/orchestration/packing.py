"""What a job brings to its cluster: the recipe, the plug-ins and, from a checkout, fmdist itself. No Ray.

The archive is the same for the same content, so that a cluster that has it needs no second upload, and it is
kept on this machine, since a cluster drops it when the job has ended.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import fmdist
from fmdist.component import GROUPS
from fmdist.console import human_bytes
from fmdist.errors import UsageError

MAX_BYTES = 100_000_000
"""More than this is data, which belongs on the cluster's storage; Ray itself takes 500 MiB."""

MAX_KEPT = 50
"""Archives that this machine keeps, the newest ones."""

RECIPE, PLUGINS = PurePosixPath("recipe"), PurePosixPath("plugins")
"""Folders of the archive."""

_EPOCH = (1980, 1, 1, 0, 0, 0)


class Packed(NamedTuple):
    """An archive, and what of it the job's command line names."""

    archive: Path
    recipe: str
    plugins: tuple[str, ...]
    files: int
    size_bytes: int
    """Before compression."""
    package: str
    """Which fmdist the job runs, in words."""


def pack(recipe: Sequence[Path], plugins: Sequence[Path]) -> Packed:
    """Write an archive of a recipe's files, the kinds of plug-in folders and, from a checkout, this package.

    Bytecode, hidden files and whatever else stands beside the kinds stay here.

    Args:
        recipe: the file, and those that it extends, which are found by the same relative paths.
        plugins: folders, as for ``--plugins``.

    Raises:
        UsageError: if it would be larger than `MAX_BYTES`, or the recipe extends an absolute path.
    """
    content = dict(_recipe(recipe))
    main = next(iter(content))
    names = tuple(str(PLUGINS / str(position)) for position in range(len(plugins)))
    for name, folder in zip(names, plugins, strict=True):
        for group in GROUPS:
            content |= _below(folder / group, PurePosixPath(name) / group)
    package = "the one that is installed on the cluster"
    checkout = Path(fmdist.__file__).parent
    if (checkout.parent / "pyproject.toml").is_file():
        content |= _below(checkout, PurePosixPath("fmdist"))
        package = "this checkout's, packed"
    _check_size(content)
    files = {str(name): file.read_bytes() for name, file in content.items()}
    if "fmdist/__init__.py" in files:
        files |= _metadata()
    size = sum(map(len, files.values()))
    return Packed(_keep(_zipped(files)), str(main), names, len(files), size, package)


def kept(name: str) -> Path | None:
    """Return the archive that was packed here under this file name, or None."""
    file = _shelf() / Path(name).name
    return file if file.is_file() else None


def _recipe(files: Sequence[Path]) -> Iterator[tuple[PurePosixPath, Path]]:
    # A link to a folder is followed before '..' is, as the reader of the recipe does.
    places = [Path(os.path.normpath(file.parent.resolve() / file.name)) for file in files]
    top = Path(os.path.commonpath([place.parent for place in places]))
    for place in places:
        yield RECIPE / place.relative_to(top).as_posix(), place


def _below(folder: Path, name: PurePosixPath) -> dict[PurePosixPath, Path]:
    found = {}
    for file in sorted(folder.rglob("*")):
        parts = file.relative_to(folder).parts
        unwanted = any(part.startswith(".") or part == "__pycache__" for part in parts)
        if file.is_file() and not unwanted and file.suffix not in (".pyc", ".pyo"):
            found[name.joinpath(*parts)] = file
    return found


def _check_size(content: dict[PurePosixPath, Path]) -> None:
    sizes = {file: file.stat().st_size for file in content.values()}
    if sum(sizes.values()) > MAX_BYTES:
        largest = max(sizes, key=lambda file: sizes[file])
        raise UsageError(
            field=str(largest),
            problem="too much to send with a job; this file is the largest",
            value=human_bytes(sum(sizes.values())),
            allowed=f"{human_bytes(MAX_BYTES)} in all",
            fix="keep data out of the plug-in folders, on storage that the cluster shares",
        )


def _metadata() -> dict[str, bytes]:
    """Return what tells fmdist its version and its extras, where it isn't installed."""
    try:
        here = importlib.metadata.distribution("fmdist")
    except importlib.metadata.PackageNotFoundError:
        return {}
    text = here.read_text("METADATA") or here.read_text("PKG-INFO") or ""
    return {f"fmdist-{here.version}.dist-info/METADATA": text.encode()}


def _zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, files[name])
    return buffer.getvalue()


def _keep(archive: bytes) -> Path:
    shelf = _shelf()
    shelf.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = shelf / f"fmdist-{hashlib.sha256(archive).hexdigest()[:32]}.zip"
    temporary = file.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_bytes(archive)
    temporary.replace(file)
    # By the clock, which may have been set back: what was just written stays.
    others = (old for old in shelf.glob("fmdist-*.zip") if old != file)
    by_age = sorted(others, key=lambda old: old.stat().st_mtime, reverse=True)
    for old in by_age[MAX_KEPT - 1 :]:
        old.unlink(missing_ok=True)
    return file


def _shelf() -> Path:
    caches = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(caches) / "fmdist" / "jobs"
