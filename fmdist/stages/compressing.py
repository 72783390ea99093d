"""The compression stage."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from fmdist import component
from fmdist.errors import CheckpointError, UsageError
from fmdist.stages.checks import check_compression
from fmdist.stages.places import ARTIFACTS, REPORT, open_trained
from fmdist.stages.recipe import Recipe, load_recipe, only
from fmdist.stages.using import report

if TYPE_CHECKING:
    from fmdist.compression.config import CompressConfig

logger = logging.getLogger(__name__)


def compress(
    run: Path | str,
    *,
    quantize: str | None = None,
    max_drop: float | None = None,
    output: Path | None = None,
) -> Path:
    """Turn a run's best checkpoint into a verified artifact with a report; return the artifact's folder.

    Args:
        run: the run's folder.
        quantize: ``int8`` adds the ``quantize`` pass if the recipe's ``compress`` section has none.
        max_drop: overrides the recipe's; in units of the primary metric.
        output: the artifact's folder, by default ``artifacts/<name of the run's folder>``.

    Raises:
        CompressionError: if a pass changed nothing, the artifact doesn't match, or the drop is too large.
        CheckpointError: if the run is training, or can't be read.
    """
    component.require("compress", needed_by="fmdist compress")
    from fmdist.compression.pipeline import compress as make_artifact
    from fmdist.compression.subject import Subject
    from fmdist.training import run as runs
    from fmdist.training.checkpoint import weights_digest

    folder = Path(run)
    loaded = load_recipe(runs.recipe_path(folder))
    runs.check_not_training(folder)
    config = compress_config(loaded, quantize, max_drop)
    check_compression(loaded.model, config)
    recipe, data, task = open_trained(folder)
    saved = runs.load_best(folder, task)
    subject = Subject(
        name=recipe.name,
        task=task,
        export=recipe.model.export(task.served(task.roles()), task.inputs),
        splits=data,
        recipe={**recipe.plain, "compress": config.model_dump(mode="json")},
        source=f"{folder}/{saved.path.name}",
        fingerprint=weights_digest(task.served(task.roles())),
        run=runs.read_run(folder)["created"],
    )
    target = output or ARTIFACTS / folder.resolve().name
    make_artifact(subject, config, target)
    report(target)
    try:
        runs.note(folder, {"artifact": os.path.relpath(target, folder)})
    except CheckpointError as error:  # a training that began meanwhile is no reason to lose the artifact
        logger.warning("%s is finished, but its run's record doesn't name it: %s", target, error)
    if (folder / REPORT).exists():
        report(folder)  # it gains the artifact's section
    return target


def compress_config(recipe: Recipe, quantize: str | None, max_drop: float | None) -> CompressConfig:
    """Return a recipe's ``compress`` section with the command line's wishes in it."""
    from fmdist.recipe import parsing

    plain = recipe.plain.get("compress") or {"passes": []}
    if quantize is not None:
        if quantize != "int8":
            raise UsageError(field="--quantize", problem="no such precision", value=quantize, allowed="int8")
        if not any(item["kind"] == "quantize" for item in plain["passes"]):
            plain["passes"] = [*plain["passes"], {"kind": "quantize"}]
    if max_drop is not None:
        plain["max_drop"] = max_drop
    config: CompressConfig = parsing.parse({"compress": plain}, only("compress"))["compress"]
    return config
