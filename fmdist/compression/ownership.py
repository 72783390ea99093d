"""Whose artifact a folder is: compressing never overwrites anything else."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fmdist import storage
from fmdist.compression.stage import FOLDER
from fmdist.compression.subject import Subject
from fmdist.errors import CheckpointError

_OWNER = "subject.json"


def own(output: Path, subject: Subject) -> None:
    """Write whose artifact this is; from other weights on the folder is no finished artifact."""
    (output / FOLDER).mkdir(exist_ok=True)
    file = output / FOLDER / _OWNER
    if file.exists() and storage.read_json(file) == _owner(subject):
        return
    (output / storage.MANIFEST).unlink(missing_ok=True)
    storage.write_json(file, _owner(subject))


def _owner(subject: Subject) -> dict[str, str]:
    return {"name": subject.name, "run": subject.run, "fingerprint": subject.fingerprint}


def check_owner(output: Path, subject: Subject) -> None:
    """Raise `CheckpointError` unless ``output`` is new, empty, or an artifact of this subject's run."""
    if output.exists() and not output.is_dir():
        raise CheckpointError(field="-o", problem="a file is in the way of the artifact", value=str(output))
    owner = output / FOLDER / _OWNER
    if owner.is_file():
        found = storage.read_json(owner)
        same_run = subject.run and found.get("run") == subject.run
        if found.get("name") != subject.name or not (
            same_run or found.get("fingerprint") == subject.fingerprint
        ):
            raise CheckpointError(
                field="-o",
                problem=f"the directory holds the artifact of other weights (of '{found.get('name')}')",
                value=str(output),
                fix="remove it, or give another directory with -o",
            )
        return
    if output.is_dir() and any(path.name not in (storage.LOCK, FOLDER) for path in output.iterdir()):
        raise CheckpointError(
            field="-o",
            problem="the directory holds something that isn't an artifact",
            value=str(output),
            fix="give a new directory with -o",
        )
    _check_writable(output)


def _check_writable(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CheckpointError(
            field="-o",
            problem=f"nothing can be written there ({error.strerror})",
            value=str(output),
            fix="give a directory that you may write to with -o",
        ) from error


@contextmanager
def scratch(output: Path) -> Iterator[Path]:
    """Yield an empty folder that `fmdist.storage.remove_leftovers` finds if this process is killed."""
    with tempfile.TemporaryDirectory(dir=output, prefix=".scratch-", suffix=".tmp") as folder:
        yield Path(folder)
