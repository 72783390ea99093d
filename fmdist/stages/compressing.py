"""The compression stage."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmdist import component
from fmdist.errors import CheckpointError
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
    passes: Mapping[str, Mapping[str, Any]] | None = None,
    max_drop: float | None = None,
    output: Path | None = None,
) -> Path:
    """Turn a run's best checkpoint into a verified artifact with a report; return the artifact's folder.

    Args:
        run: the run's folder.
        passes: kind of pass -> settings, such as ``{"prune_channels": {"ratio": 0.5}, "quantize": {}}``: they
            override those of the recipe's ``compress`` section, or are added to it.
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
    config = compress_config(loaded, passes or {}, max_drop)
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


def compress_config(
    recipe: Recipe, passes: Mapping[str, Mapping[str, Any]], max_drop: float | None
) -> CompressConfig:
    """Return a recipe's ``compress`` section with what a caller wants of passes in it, in their order."""
    from fmdist.recipe import parsing

    plain = recipe.plain.get("compress") or {"passes": []}
    known = {item["kind"]: item for item in plain["passes"]}
    for kind, settings in passes.items():
        known[kind] = {"kind": kind, **known.get(kind, {}), **settings}
    orders = {kind: component.load(component.find("passes", kind)).order for kind in known}
    if passes:
        plain["passes"] = sorted(known.values(), key=lambda item: orders[item["kind"]])
    if max_drop is not None:
        plain["max_drop"] = max_drop
    config: CompressConfig = parsing.parse({"compress": plain}, only("compress"))["compress"]
    return config
