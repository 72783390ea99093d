"""How sensitive a run's layers are to what compression would do to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fmdist.stages.compressing import compress_config
from fmdist.stages.places import open_trained
from fmdist.stages.recipe import load_recipe

FOLDER = "sensitivity"


def analyze(run: Path | str) -> tuple[Path, dict[str, Any]]:
    """Measure a run's best checkpoint layer by layer; nothing is compressed.

    Writes ``sensitivity/sensitivity.json`` and a report beside it into the run's folder. What was measured
    with the same weights, data and settings (the recipe's ``compress.sensitivity``) is used again.

    Returns:
        The folder, and the record as `fmdist.compression.sensitivity` describes it.

    Raises:
        CheckpointError: if the run is training, or can't be read.
        DataError: if the recipe's data is no longer what it was.
        Interrupted: by SIGTERM or SIGINT.
    """
    from fmdist.compression import sensitivity
    from fmdist.reports.sensitivity import write
    from fmdist.training import run as runs
    from fmdist.training.signals import EndAtOnce

    folder = Path(run)
    loaded = load_recipe(runs.recipe_path(folder))
    runs.check_not_training(folder)
    config = compress_config(loaded, {}, {}).sensitivity
    recipe, data, task = open_trained(folder)
    runs.load_best(folder, task)
    example = recipe.model.export(task.served(task.roles()), task.inputs).example()
    model = sensitivity.Model(task, example, data, recipe.seed)
    target = folder / FOLDER
    with EndAtOnce("nothing, since no layer's figures hold without the others'") as ending:
        record = sensitivity.recorded(model, config, target / sensitivity.FILE, ending.check)
        write(target, recipe.name, record)
    return target, record
