"""Virtual environments for peers whose packages are no dependencies of ours.

They see the packages of the environment that runs the benchmark, so that torch and the runtimes are the same
for every side, and what they install on top stays in ``build/peers/<name>``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

from benchmarks.harness import ROOT

FOLDER = ROOT / "build" / "peers"
PATIENCE_S = 180
"""Longest that an installation may take."""


class NotInstalled(Exception):
    """The peer can't be installed here; the message is pip's reason."""


def interpreter(name: str, requirement: str) -> Path:
    """Return the Python of a peer's environment, made if it isn't there.

    Raises:
        NotInstalled: with the last line that pip wrote, or after `PATIENCE_S`.
    """
    folder = FOLDER / name
    python = folder / "bin" / "python"
    ready = folder / "installed.txt"
    if ready.exists() and ready.read_text() == requirement:
        return python
    venv.create(folder, clear=True)
    packages = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    (packages / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    words = [str(python), "-m", "pip", "install", "--quiet", requirement]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        message = f"pip install {requirement}: not done after {PATIENCE_S} s"
        raise NotInstalled(message) from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        message = f"pip install {requirement}: {said}"
        raise NotInstalled(message)
    ready.write_text(requirement)
    return python


def versions(python: Path, packages: list[str]) -> dict[str, str]:
    """Return the versions of packages as an interpreter finds them."""
    code = "import sys, importlib.metadata as m\nfor name in sys.argv[1:]: print(m.version(name))"
    found = subprocess.run([str(python), "-c", code, *packages], capture_output=True, text=True, check=True)
    return dict(zip(packages, found.stdout.split(), strict=True))


def surroundings(threads: int | None = None) -> dict[str, str]:
    """Return the environment variables of a peer's process: our sources, and a limit on its threads."""
    own = {**os.environ, "PYTHONPATH": str(ROOT)}
    if threads is not None:
        own |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return own


HERE = Path(sys.executable)
"""The interpreter of peers that need nothing more."""
