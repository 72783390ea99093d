"""Where runs and artifacts stand, and how a finished one is opened again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fmdist import storage
from fmdist.errors import UsageError, did_you_mean
from fmdist.stages.modules import checkpointed_task
from fmdist.stages.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from fmdist.contracts import Task
    from fmdist.data.splits import DataSplits

RUNS, ARTIFACTS = Path("runs"), Path("artifacts")
"""Where they are kept unless told otherwise."""

RECORD, REPORT = "run.json", "report.html"
"""A run's folder holds the one, and `report` writes the other."""


def is_artifact(folder: Path) -> bool:
    """Return whether a folder holds an artifact (and not a run)."""
    return (folder / storage.MANIFEST).is_file()


def existing(target: Path | str) -> Path:
    """Return the folder of a run or an artifact; the error for another says which name is meant."""
    folder = Path(target)
    if is_artifact(folder) or (folder / RECORD).is_file():
        return folder
    marks = (RECORD, storage.MANIFEST)
    known = sorted({path.parent.name for mark in marks for path in folder.parent.glob(f"*/{mark}")})
    problem = "neither a run nor a finished artifact" if folder.exists() else "no such run or artifact"
    raise UsageError(
        field=str(folder), problem=problem, allowed=", ".join(known), fix=did_you_mean(folder.name, known)
    )


def open_trained(folder: Path) -> tuple[Recipe, DataSplits, Task]:
    """Return a run's recipe, its data as it was, and its task in the initial state."""
    from fmdist.training import run as runs

    recipe = load_recipe(runs.recipe_path(folder))
    data = recipe.data.build(recipe.seed)
    runs.check_data(folder, storage.read_json(folder / runs.DATA)["sha256"], data.record["sha256"])
    return recipe, data, checkpointed_task(recipe, data.spec)
