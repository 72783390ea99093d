"""``fmdist train``: a recipe's model, trained into a run folder."""

from __future__ import annotations

from pathlib import Path

import click

from fmdist.cli.evaluate import describe
from fmdist.cli.frame import Answer, FilePath, verb, with_recipe

to_run_folder = click.option(
    "-o", "--output", type=FilePath, metavar="DIR", help="The run's folder [default: runs/<name>]."
)
with_profile = click.option("--profile", is_flag=True, help="Write a trace and where a step's time goes.")
with_address = click.option(
    "--address",
    metavar="ADDRESS",
    help="Train on this Ray cluster: auto, or HOST:PORT [default: start one if needed].",
)


@verb()
@with_recipe
@to_run_folder
@with_profile
@with_address
def train(
    recipe: Path, overrides: tuple[str, ...], output: Path | None, profile: bool, address: str | None
) -> Answer:
    """Train a recipe's model; the same command resumes a run that was stopped."""
    from fmdist import stages

    trained = stages.train(recipe, output=output, overrides=overrides, profile=profile, address=address)
    data = {
        "run": str(trained.folder),
        "metrics": dict(trained.metrics),
        "baseline": dict(trained.baseline),
        "primary": trained.primary,
        "interval": trained.interval,
    }
    return Answer(data, f"{describe('test split', data)}\nrun: {trained.folder}")
