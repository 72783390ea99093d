"""Files in one folder per class: root/class/*, or root/train|val|test/class/* if already split."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fmdist.errors import DataError, did_you_mean

logger = logging.getLogger(__name__)

PUBLISHED = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "test": "test",
}
"""Folder (or part of a published data set) -> split."""


class ClassFile(NamedTuple):
    """A file, and what its place says about it."""

    path: Path
    label: str
    split: str


def list_class_files(
    root: Path, suffixes: Sequence[str], leave_out: Sequence[str] = ()
) -> tuple[list[str], list[ClassFile]]:
    """Return the names of the classes, in alphabetical order, and all files, in the order of their paths.

    Args:
        root: the folder of the data set.
        suffixes: how the files end; others are counted in a warning and ignored.
        leave_out: folders that are no classes.

    Raises:
        DataError: if there are fewer than two classes, a class without files, a name in ``leave_out`` that is
            no folder, or parts that don't have the same classes.
    """
    if not root.is_dir():
        raise DataError(field="data.root", problem="no such directory", value=str(root))
    folders = _folders(root)
    is_split = any(folder.name == "train" and _folders(folder) for folder in folders) and all(
        folder.name in PUBLISHED for folder in folders
    )
    parts = {folder: PUBLISHED[folder.name] for folder in folders} if is_split else {root: "train"}
    present = {folder.name for part in parts for folder in _folders(part)}
    for name in leave_out:
        if name not in present:
            raise DataError(
                field="data.leave_out",
                problem="no such folder",
                value=name,
                allowed=", ".join(sorted(present)),
                fix=did_you_mean(name, present),
            )
    names = sorted(present - set(leave_out))
    if len(names) < 2:
        raise DataError(
            field="data.root",
            problem="fewer than two class folders",
            value=f"{root}: {', '.join(names) or 'none'}",
            allowed="one folder of files for each of two or more classes",
        )
    files = []
    for part, split in parts.items():
        if absent := [name for name in names if not (part / name).is_dir()]:
            raise DataError(
                field=str(part),
                problem="a class of the other parts has no folder here",
                value=absent,
                fix="add it, or list the name under data.leave_out if it is no class",
            )
        files += [ClassFile(path, name, split) for name in names for path in _files(part / name, suffixes)]
    return names, files


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(folder: Path, suffixes: Sequence[str]) -> list[Path]:
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    wanted = [path for path in files if path.suffix.lower() in suffixes]
    if not wanted:
        raise DataError(
            field=str(folder),
            problem="a class folder without files of the right kind",
            value=f"{len(files)} other file(s)",
            allowed=f"files that end in {', '.join(suffixes)}",
            fix="add some, or remove the folder",
        )
    if len(wanted) < len(files):
        logger.warning("%s: %d file(s) of another kind are ignored", folder, len(files) - len(wanted))
    return wanted
