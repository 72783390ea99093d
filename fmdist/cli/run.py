"""``fmdist run``: every stage of a recipe, in order."""

from __future__ import annotations

from pathlib import Path

import click

from fmdist.cli.compress import describe
from fmdist.cli.frame import Answer, FilePath, verb, with_recipe
from fmdist.cli.train import to_run_folder, with_address, with_profile


@verb()
@with_recipe
@to_run_folder
@with_profile
@with_address
@click.option(
    "--artifact",
    type=FilePath,
    metavar="DIR",
    help="The artifact's folder [default: artifacts/<run's name>].",
)
def run(
    recipe: Path,
    overrides: tuple[str, ...],
    output: Path | None,
    profile: bool,
    address: str | None,
    artifact: Path | None,
) -> Answer:
    """Train, compress, verify and report; finished stages are not repeated."""
    from fmdist import stages

    life = stages.run(
        recipe, output=output, overrides=overrides, profile=profile, address=address, artifact=artifact
    )
    data = {"run": str(life.folder), "report": str(life.report)}
    text = f"run:      {life.folder}\nreport:   {life.report}"
    if life.artifact is not None:
        results, table = describe(life.artifact)
        data |= results
        text = f"{table}\n\nartifact: {life.artifact}\n{text}"
    return Answer(data, text)
