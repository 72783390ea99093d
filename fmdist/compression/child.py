"""Runs one of our modules in a fresh process, and hands it a torch module."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fmdist import component, storage
from fmdist.errors import CompressionError

Program = Callable[[], "torch.export.ExportedProgram"]

PROGRAM = ".pt2"
"""Ending of a file of `torch.export`."""


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


def save_module(module: nn.Module, file: Path, program: Program | None = None) -> None:
    """Write a whole module for `load_module`; as a program where no other process can import its classes.

    Args:
        module: what is pickled.
        file: where it goes.
        program: makes a program of it; for classes of a script, a notebook or a function. None: they are
            refused.

    Raises:
        CompressionError: if its class can't be imported in another process, and torch can't export it.
    """
    reason = "its classes can't be imported there"
    if all(_importable(type(part)) for part in module.modules()):
        try:
            torch.save(module, file)
            return
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            reason = str(error)
            file.unlink(missing_ok=True)
    try:
        if program is not None:
            torch.export.save(program(), file.with_suffix(PROGRAM))
            return
    except CompressionError as error:
        reason += f"; and as a program: {error.problems[0].problem}"
    raise CompressionError(
        field="compress",
        problem=f"the original can't be given to a process of its own ({reason})",
        fix="define its classes and functions at the top of a file that can be imported",
    )


def how_saved(file: Path) -> str:
    """Return ``eager`` for a module that was pickled to ``file``, ``program`` for one that was exported."""
    return "eager" if file.exists() else "program"


def _importable(kind: type[nn.Module]) -> bool:
    # What a script defines is __main__ there only; what torch.export loads is generated code.
    return kind.__module__ != "__main__" and not issubclass(kind, torch.fx.GraphModule)


def load_module(file: Path, plugins: Iterable[tuple[str, str, str]]) -> nn.Module:
    """Read what `save_module` wrote, after importing these ``--plugins``; see `plugin_kinds`."""
    for folder, group, kind in plugins:
        component.add_plugin_folder(Path(folder))
        component.load(component.find(group, kind))
    # Our own file, written a moment ago by the process that started this one.
    if how_saved(file) == "program":
        return torch.export.load(file.with_suffix(PROGRAM)).module()
    module: nn.Module = torch.load(file, weights_only=False)
    return module


def plugin_kinds() -> list[tuple[str, str, str]]:
    """Return (folder, group, kind) of the ``--plugins`` that this process has imported."""
    found = []
    for name, module in sys.modules.items():
        package, _, rest = name.partition(".")
        group, _, kind = rest.partition(".")
        if package == "fmdist_plugins" and kind and module.__file__ is not None:
            found.append((str(Path(module.__file__).parent.parent), group, kind))
    return found
