"""``fmdist submit``: a recipe as a job of a Ray cluster."""

from __future__ import annotations

from pathlib import Path

import click

from fmdist.cli.frame import Answer, FilePath, verb, with_recipe
from fmdist.cli.jobs import follow, look_after, to_cluster

VERBS = ("train", "run")


@verb()
@click.argument("what", type=click.Choice(VERBS), metavar=f"[{'|'.join(VERBS)}]")
@with_recipe
@to_cluster
@click.option(
    "-o",
    "--output",
    type=FilePath,
    metavar="DIR",
    help="The run's folder on storage that the cluster shares [default, if it is this machine: runs/<name>].",
)
@click.option("--follow", "following", is_flag=True, help="Show the job's log until it ends.")
@click.option(
    "--python", default="python", metavar="PATH", help="The interpreter on the cluster [default: python]."
)
def submit(
    what: str,
    recipe: Path,
    overrides: tuple[str, ...],
    address: str | None,
    insecure: bool,
    output: Path | None,
    following: bool,
    python: str,
) -> Answer:
    """Hand a recipe in as a job; the cluster must ask for a token.

    What is sent: the recipe, what it extends, the folders named with --plugins, and fmdist itself if it runs
    from a checkout. Data is not.
    """
    from fmdist import console
    from fmdist.stages import submitting

    done = submitting.submit(
        what,
        recipe,
        overrides=overrides,
        output=output,
        address=address,
        insecure=insecure,
        python=python,
    )
    packed = done.packed
    data = {
        "job": done.id,
        "run": str(done.run),
        "artifact": str(done.artifact) if done.artifact else None,
        "packed": {"files": packed.files, "bytes": packed.size_bytes, "fmdist": packed.package},
    }
    lines = [
        f"packed: {packed.files} files, {console.human_bytes(packed.size_bytes)}; fmdist: {packed.package}",
        f"job:    {done.id}",
        f"run:    {done.run} (on the cluster)",
        *([f"artifact: {done.artifact} (on the cluster)"] if done.artifact else []),
    ]
    if following:
        return follow(done.jobs, done.id, data, lines)
    status = done.jobs.get(done.id).status
    lines[1] += f" ({status.lower()})"
    commands = look_after(done.jobs, done.id)
    return Answer(data | {"status": status, "commands": commands}, "\n".join([*lines, *commands]))
