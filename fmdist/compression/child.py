"""Runs one of our modules in a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from fmdist import storage
from fmdist.errors import CompressionError


def run_child(module: str, job: dict[str, Any], folder: Path, threads: int | None = None) -> None:
    """Run ``python -m module job.json`` and wait for it.

    Args:
        module: dotted name; its ``main`` reads the job's file.
        job: JSON values.
        folder: where the job's file is written.
        threads: CPU threads of OpenMP and MKL; None leaves it to them.

    Raises:
        CompressionError: if it fails, with the last line that it wrote.
    """
    file = folder / f"{module.rpartition('.')[2]}.json"
    storage.write_json(file, job)
    environment = dict(os.environ)
    # The child finds what this process finds, and (-P) nothing that merely lies in the current folder.
    environment["PYTHONPATH"] = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
    if threads is not None:
        environment |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    ended = subprocess.run(
        [sys.executable, "-P", "-m", module, str(file)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if ended.returncode:
        said = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        raise CompressionError(
            field=module,
            problem=f"the process ended with code {ended.returncode} ({said})",
        )
