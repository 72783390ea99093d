"""Reading what was recorded; a file that is absent gives None, a broken one is an error that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from fmdist import storage
from fmdist.errors import CheckpointError


def mapping(path: Path) -> dict[str, Any] | None:
    """Return a JSON object.

    Raises:
        CheckpointError: if the file is there and holds no JSON object.
    """
    if not path.is_file():
        return None
    value = storage.read_json(path)
    if not isinstance(value, dict):
        raise CheckpointError(field=str(path), problem="not a JSON object", value=type(value).__name__)
    return value


def record(path: Path, known_format: int) -> dict[str, Any]:
    """Return the JSON object that a folder is reported from.

    Raises:
        CheckpointError: if it is missing, broken, or of a format that this version doesn't read.
    """
    found = mapping(path)
    if found is None or found.get("format") != known_format:
        raise CheckpointError(
            field=f"{path}: format",
            problem="written in a format that this version doesn't read",
            value=None if found is None else found.get("format"),
            allowed=str(known_format),
            fix="use the version of fmdist that wrote it",
        )
    return found


def lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file, in order; an empty list if there is no file.

    Raises:
        CheckpointError: naming the line that is not JSON.
    """
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    # A last line without its newline is still being written, or was cut by a kill.
    whole = text[: text.rfind("\n") + 1]
    found = []
    for position, line in enumerate(whole.splitlines(), start=1):
        try:
            found.append(json.loads(line))
        except ValueError as error:
            raise CheckpointError(field=f"{path}:{position}", problem=f"not valid JSON ({error})") from None
    return found


def arrays(path: Path) -> dict[str, NDArray[Any]] | None:
    """Return the arrays of an ``.npz`` file by name.

    Raises:
        CheckpointError: if the file is there and can't be read.
    """
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except (ValueError, OSError, EOFError, BadZipFile) as error:
        raise CheckpointError(field=str(path), problem=f"not a readable .npz file ({error})") from None


def text(path: Path) -> str | None:
    """Return a text file."""
    return path.read_text(encoding="utf-8") if path.is_file() else None
