"""A recipe as a job of a Ray cluster: checked and packed here, trained there."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmdist.errors import UsageError
from fmdist.stages.places import ARTIFACTS, RUNS
from fmdist.stages.recipe import load_recipe

if TYPE_CHECKING:
    from fmdist.orchestration.door import Door
    from fmdist.orchestration.jobs import Jobs
    from fmdist.orchestration.packing import Packed
    from fmdist.stages.recipe import Recipe


@dataclass(frozen=True)
class Submitted:
    """A job that was handed in."""

    id: str
    jobs: Jobs
    packed: Packed
    run: Path
    """The run's folder on the cluster."""
    artifact: Path | None
    """None if the job makes none."""


def submit(
    verb: str,
    recipe: Path,
    *,
    overrides: Sequence[str] = (),
    output: Path | None = None,
    address: str | None = None,
    insecure: bool = False,
    python: str = "python",
) -> Submitted:
    """Check a recipe, pack it with the plug-ins in use, and hand it in as a job.

    Args:
        verb: ``train`` or ``run``.
        recipe: its file.
        overrides: such as ``train.lr=1e-3``.
        output: the run's folder on the cluster: absolute, on storage that all its machines share. If this
            machine is the whole cluster, it is relative to this directory and ``runs/<name>`` by default.
        address: of the cluster's job API; None takes it from the environment.
        insecure: see `fmdist.orchestration.door.find`.
        python: the interpreter on the cluster.

    Raises:
        UsageError: if the cluster can't be reached or trusted, or doesn't share the run's folder.
        RecipeError, CapabilityError, DependencyMissing: see `fmdist.stages.load_recipe`.
    """
    from fmdist import component
    from fmdist.orchestration import door, packing
    from fmdist.recipe import reader

    loaded = load_recipe(recipe, overrides)
    base = reader.extended(recipe)
    _check_paths(base, loaded)
    way = door.find(address, insecure)
    run = _location(output, loaded.name, way)
    artifact = _artifact(run) if verb == "run" and loaded.compress is not None else None
    files = [recipe] if base is None else [recipe, recipe.parent / base]
    packed = packing.pack(files, component.plugin_folders())

    # Imported here: Ray takes half a second, which a mistake above needn't wait for.
    from fmdist.orchestration.jobs import Jobs, Order

    words = [python, "-m", "fmdist", verb, "-o", str(run)]
    words += ["--artifact", str(artifact)] if artifact else []
    words += [word for folder in packed.plugins for word in ("--plugins", folder)]
    words += ["--", packed.recipe, *overrides]
    jobs = Jobs(way)
    order = Order(
        loaded.name,
        verb,
        f"exec {shlex.join(words)}",  # exec: Ray's signals are for fmdist, not for a shell
        str(packed.archive),
        packed.archive.name,
        str(run),
        str(artifact or ""),
    )
    return Submitted(jobs.submit(order), jobs, packed, run, artifact)


def _location(output: Path | None, name: str, way: Door) -> Path:
    from fmdist.orchestration import door

    if output is not None and output.is_absolute():
        return output
    if door.is_here(way):
        return Path.cwd() / (output or RUNS / name)
    raise UsageError(
        field="-o",
        problem="the cluster is not this machine alone, so the run needs a folder on storage that it shares",
        value=None if output is None else str(output),
        allowed="an absolute path, the same on all machines of the cluster",
        fix=f"for example -o /shared/{RUNS / name}",
    )


def _artifact(run: Path) -> Path:
    """Return the artifact's folder beside the runs: the job's own directory is removed with it."""
    place = run.parent.parent if run.parent.name == RUNS.name else run.parent
    return place / ARTIFACTS / run.name


def _check_paths(base: str | None, recipe: Recipe) -> None:
    """Refuse what would not be found on the cluster, and is meant to: it lies here, by a relative path."""
    if base is not None and Path(base).is_absolute():
        raise UsageError(
            field="extends",
            problem="an absolute path isn't found on the cluster",
            value=base,
            allowed="a path relative to the recipe",
        )
    from pydantic import BaseModel

    def relative(value: Any, keys: str) -> Iterator[tuple[str, Path]]:
        if isinstance(value, Path) and not value.is_absolute() and value.exists():
            yield keys, value
        elif isinstance(value, BaseModel):
            for name in type(value).model_fields:
                yield from relative(getattr(value, name), f"{keys}.{name}")
        elif isinstance(value, list | tuple):
            for index, inner in enumerate(value):
                yield from relative(inner, f"{keys}.{index}")

    for section in ("data", "model", "task", "train", "transfer", "distill", "compress"):
        for keys, path in relative(getattr(recipe, section), section):
            raise UsageError(
                field=keys,
                problem="this lies on this machine, and data isn't packed with a job",
                value=str(path),
                allowed="an absolute path on storage that the cluster shares",
                fix=f"copy it there and say {keys}=/shared/{path.name}; on a cluster of this machine alone, "
                f"{keys}={path.resolve()}",
            )
