"""Run exported models in a process of its own that can load neither torch nor any model's code.

``python -m fmdist.deployment.probe JOB.json``: the job names the models and the inputs, and the outputs go
into one folder. What comes out is what a user of the artifact gets.

Job: ``{"models": [{"name", "file", "runtime", "precision"}], "inputs": {set: {input name: file.npy}}, "rule":
see `fmdist.tasks.decoding`, "scored": {name: file.npy}, "threads": int, "output": folder}``. A model's
outputs for a set are written to ``name.set.npy``, the rule's rows for what is scored to ``name.scored.npy``,
and ``executed.json`` says in which precision each model's layers ran.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmdist import storage
from fmdist.deployment.runtime import open_model
from fmdist.tasks import decoding

REFUSED = ("torch", "fmdist.models", "fmdist.training")


class ModelCodeRefused(ImportError):
    """The probed path needs code that an artifact must not need."""


class Refuse:
    """An import hook that lets nobody import the modules of `REFUSED`."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Raise for a refused module; None leaves the import to others."""
        if any(name == refused or name.startswith(f"{refused}.") for refused in REFUSED):
            message = f"{name} must not be needed to run an artifact"
            raise ModelCodeRefused(message, name=name)
        return None


def main(job_file: Path) -> None:
    """Do the job and write its outputs."""
    sys.meta_path.insert(0, Refuse())
    job = json.loads(job_file.read_text(encoding="utf-8"))
    output = Path(job["output"])
    executed = {}
    for model in job["models"]:
        session = open_model(Path(model["file"]), model["runtime"], model["precision"], job["threads"])
        for set_name, files in job["inputs"].items():
            outputs = session.run(_read(files, mapped=False))
            np.save(output / f"{model['name']}.{set_name}.npy", outputs)
        scored = decoding.rows(job["rule"], session.run, _read(job["scored"], mapped=True))
        np.save(output / f"{model['name']}.scored.npy", scored)
        executed[model["name"]] = session.executed()
    loaded = [name for name in REFUSED if name in sys.modules]
    storage.write_json(output / "executed.json", {"executed": executed, "refused_but_loaded": loaded})


def _read(files: dict[str, str], mapped: bool) -> dict[str, NDArray[Any]]:
    return {name: np.load(file, mmap_mode="r" if mapped else None) for name, file in files.items()}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
