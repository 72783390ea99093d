"""Files of published data sets: found where they should be, or downloaded if the recipe says so."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fmdist import component
from fmdist.errors import DataError


def find_or_download(
    dataset: str,
    root: Path,
    download: bool,
    find: Callable[[], Sequence[Path | None]],
    looked_for: Sequence[str],
) -> list[Path]:
    """Return the files that ``find`` finds, after a download if some are missing and ``download`` is set.

    Args:
        dataset: the name of torchvision's data set class.
        root: the folder in which torchvision puts it.
        download: whether that is allowed.
        find: returns each file of the data set, None where it isn't there.
        looked_for: the files' names, for the message.

    Raises:
        DataError: naming the files that are missing.
        DependencyMissing: if it is to be downloaded and torchvision is not installed.
    """
    found = find()
    if download and None in found:
        _download(dataset, root)
        found = find()
    missing = [name for name, file in zip(looked_for, found, strict=True) if file is None]
    if missing:
        raise DataError(
            field="data.root",
            problem=f"{len(missing)} file(s) of {dataset} not found: {', '.join(missing)}",
            value=str(root),
            allowed="the folder that holds the published files, or torchvision's layout of them",
            fix="correct data.root, or set data.download to true",
        )
    return [file for file in found if file is not None]


def _download(dataset: str, root: Path) -> None:
    component.require("vision", needed_by="data.download")
    import torchvision

    try:
        # torchvision prints its progress, and standard output may be somebody's JSON
        with contextlib.redirect_stdout(sys.stderr):
            getattr(torchvision.datasets, dataset)(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(
            field="data.download",
            problem=f"{dataset} could not be downloaded ({error})",
            value=str(root),
            fix="check the network, or put the published files into data.root",
        ) from None
