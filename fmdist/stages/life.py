"""All the stages of a recipe, in order."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fmdist.stages.compressing import compress
from fmdist.stages.places import RUNS
from fmdist.stages.recipe import Source, load_recipe
from fmdist.stages.training import train
from fmdist.stages.using import report

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Life:
    """What `run` leaves."""

    folder: Path
    artifact: Path | None
    """None if the recipe has no ``compress`` section."""
    report: Path


def run(
    recipe: Source,
    *,
    output: Path | None = None,
    overrides: Sequence[str] = (),
    profile: bool = False,
    address: str | None = None,
    artifact: Path | None = None,
) -> Life:
    """Do every stage that a recipe has: train, compress and verify, report. Finished stages are not repeated.

    Args:
        recipe: a path, a mapping or a `Recipe`.
        output: the run's folder, by default ``runs/<name>``.
        overrides: such as ``train.lr=1e-3``.
        profile: see `train`.
        address: see `train`.
        artifact: the artifact's folder, by default ``artifacts/<name of the run's folder>``.
    """
    from fmdist.training import run as runs

    loaded = load_recipe(recipe, overrides)
    folder = output or RUNS / loaded.name
    if runs.is_finished(folder, loaded.plain):
        logger.info("%s is trained already", folder)
        runs.update_recipe(folder, loaded.plain)
    else:
        train(loaded, output=folder, profile=profile, address=address)
    made = None if loaded.compress is None else compress(folder, output=artifact)
    return Life(folder, made, report(folder))
