"""``fmdist runs``: list the runs of a folder, or compare two."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from fmdist.cli.frame import Answer, FilePath, verb


@verb()
@click.argument("folder", type=FilePath, default=Path("runs"), metavar="[DIR]")
@click.option("--compare", nargs=2, metavar="A B", help="Two runs, by name in DIR or by path.")
def runs(folder: Path, compare: tuple[str, str] | None) -> Answer:
    """List the runs in DIR (runs/), or compare two of them.

    A comparison shows the recipe's keys that differ, and both runs' metrics.
    """
    return _compare(folder, *compare) if compare else _list(folder)


def _list(folder: Path) -> Answer:
    from fmdist import console
    from fmdist.errors import UsageError

    if not folder.is_dir():
        raise UsageError(
            field=str(folder), problem="no such directory", fix="name the folder that holds the runs"
        )
    found = [_read(path.parent) for path in sorted(folder.glob("*/run.json"))]
    if not found:
        return Answer({"runs": []}, f"no runs in {folder}")
    rows = [
        [
            run["name"],
            run["status"],
            run.get("epoch"),
            run.get("step"),
            f"{run['primary']['name']} {run['primary']['value']:.4g}" if _scored(run) else None,
            console.human_duration(run["seconds"]) if "seconds" in run else None,
            f"{console.human_duration(_age_s(run['updated']))} ago",
        ]
        for run in found
    ]
    columns = ["run", "status", "epochs", "steps", "primary metric", "duration", "updated"]
    return Answer({"runs": found}, console.table("", columns, rows))


def _compare(folder: Path, first: str, second: str) -> Answer:
    from fmdist import console

    paths = [_find(folder, name) for name in (first, second)]
    left, right = (_read(path) for path in paths)
    recipes = [_flat(_recipe(path)) for path in paths]
    metrics = [_flat(run.get("metrics", {})) for run in (left, right)]
    data: dict[str, Any] = {
        "runs": [str(path) for path in paths],
        "recipe": _differences(*recipes),
        "metrics": {name: [side.get(name) for side in metrics] for name in {**metrics[0], **metrics[1]}},
    }
    columns = ["", first, second]
    changed = [[name, *values] for name, values in data["recipe"].items()]
    text = console.table("Recipe", columns, changed) if changed else "Recipe: no difference"
    scores = [
        [name, *values, values[1] - values[0] if None not in values else None]
        for name, values in data["metrics"].items()
    ]
    return Answer(data, f"{text}\n\n{console.table('Metrics', [*columns, 'difference'], scores)}")


def _find(folder: Path, name: str) -> Path:
    from fmdist.errors import UsageError, did_you_mean

    for path in (folder / name, Path(name)):
        if (path / "run.json").is_file():
            return path
    known = sorted(path.parent.name for path in folder.glob("*/run.json"))
    raise UsageError(
        field="--compare",
        problem="no such run",
        value=name,
        allowed=", ".join(known) or f"a run's path; {folder} holds none",
        fix=did_you_mean(name, known),
    )


def _read(path: Path) -> dict[str, Any]:
    """Return a run's record; its position and metrics stand there once training has ended or was stopped."""
    from fmdist.errors import CheckpointError
    from fmdist.storage import read_json

    run = read_json(path / "run.json")
    needed = {"name", "status", "updated"}
    if not isinstance(run, dict) or needed - run.keys():
        missing = sorted(needed - set(run)) if isinstance(run, dict) else sorted(needed)
        raise CheckpointError(
            field=str(path / "run.json"), problem=f"not the record of a run: {', '.join(missing)} missing"
        )
    return {"path": str(path), **run}


def _recipe(path: Path) -> dict[str, Any]:
    from fmdist.recipe import reader

    return reader.read(path / "recipe.yaml").values


def _scored(run: Mapping[str, Any]) -> bool:
    return bool(run.get("primary")) and run["primary"]["value"] is not None


def _age_s(updated: str) -> float:
    from datetime import UTC, datetime

    then = datetime.fromisoformat(updated)
    return max(0.0, (datetime.now(UTC) - (then if then.tzinfo else then.replace(tzinfo=UTC))).total_seconds())


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested mappings as one, ``train.optimizer.lr`` -> value."""
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping) and inner:
            flat |= _flat(inner, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = inner
    return flat


def _differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> dict[str, list[Any]]:
    return {
        name: [left.get(name), right.get(name)]
        for name in {**left, **right}
        if left.get(name) != right.get(name) or (name in left) != (name in right)
    }
