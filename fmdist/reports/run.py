"""The report of a training run: what `run.json`, `metrics.jsonl`, `data.json` and `evaluation/` hold."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmdist.reports import artifact, evaluation, files, pictures, plots
from fmdist.reports.layout import (
    Code,
    Figure,
    Figures,
    Link,
    Note,
    Page,
    Section,
    Tile,
    duration,
    facts,
    interval,
    number,
    words,
)

FORMAT = 2
RECORD = "run.json"


def page(folder: Path) -> Page:
    """Return the report of the run in ``folder``.

    Raises:
        CheckpointError: if a recorded file is broken, or the run is of an unknown format.
    """
    run = files.record(folder / RECORD, FORMAT)
    history = files.lines(folder / "metrics.jsonl")
    found = evaluation.read(folder)
    primary = run.get("primary") or {}
    best = _at_step(history, run.get("best_step"))
    sections = [Section("Training", _curves(history, primary, best))]
    if found is not None:
        sections += evaluation.sections(found, best)
        sections += pictures.sections(folder, found)
    sections += _artifact(folder, run)
    if data := files.mapping(folder / "data.json"):
        sections.append(Section("Data", (facts(data),)))
    if recipe := files.text(folder / "recipe.yaml"):
        sections.append(Section("Recipe", (Code(recipe),)))
    environment = {"versions": run.get("versions"), "hardware": run.get("hardware")}
    if environment := {name: value for name, value in environment.items() if value}:
        sections.append(Section("Environment", (facts(environment),)))
    return Page(
        kind="run",
        name=str(run["name"]),
        status=str(run.get("status", "")),
        subtitle=_subtitle(run),
        tiles=tuple(_tiles(run, primary, found, history)),
        sections=tuple(sections),
    )


def _subtitle(run: dict[str, Any]) -> str:
    parts = [f"{run['parameters']:,} parameters"] if run.get("parameters") else []
    parts += [f"{name} {run[name]}" for name in ("created", "updated") if run.get(name)]
    return " · ".join(parts)


def _tiles(
    run: dict[str, Any],
    primary: dict[str, Any],
    found: evaluation.Evaluation | None,
    history: Sequence[dict[str, Any]],
) -> list[Tile]:
    tiles = []
    if found is not None:
        record, name = found.record, found.record["primary"]
        bounds = f"95%: {interval(record['interval'])}" if record.get("interval") else ""
        tiles.append(Tile(f"test {words(name)}", number(record["metrics"][name]), bounds))
        baseline = record.get("baseline", {}).get(name)
        if baseline is not None:
            tiles.append(Tile(f"baseline {words(name)}", number(baseline), "trivial predictor"))
    if primary.get("value") is not None:
        step = f", step {run['best_step']:,}" if run.get("best_step") is not None else ""
        tiles.append(
            Tile(f"validation {words(primary['name'])}", number(primary["value"]), "best checkpoint" + step)
        )
    if run.get("epoch") is not None:
        steps = f"{run['step']:,} steps" if run.get("step") is not None else ""
        steps += ", stopped early" if run.get("stopped_early") else ""
        tiles.append(Tile("epochs", number(run["epoch"]), steps))
    if run.get("seconds") is not None:
        rates = [line["samples_per_s"] for line in history if line.get("samples_per_s") is not None]
        rate = f"{statistics.median(rates):,.0f} samples per second" if rates else ""
        tiles.append(Tile("training time", duration(run["seconds"]), rate))
    return tiles


def _curves(
    history: Sequence[dict[str, Any]], primary: dict[str, Any], best: dict[str, float]
) -> tuple[Figures, ...]:
    epochs = {line["epoch"] for line in history if "epoch" in line}
    axis = "epoch" if len(epochs) > 1 else "step"
    name = primary.get("name", "loss")
    score = _series(history, "validation", name, axis)
    mark = best.get(axis)
    drawn = []
    # A task of several phases has a training loss for each of its roles.
    keys = dict.fromkeys(key for line in history for key in line if key.split("_")[0] == "loss")
    losses = [_series(history, split, key, axis) for key in keys for split in ("train", "validation")]
    if losses := [line for line in losses if line.y]:
        caption = "Training loss is a mean over steps, with the recipe's augmentation and dropout on; "
        caption += "validation loss is measured between them, with both off."
        drawn.append(Figure(f"Loss by {axis}", plots.curves(losses, axis, "loss", mark, log=True), caption))
    if score.y and name != "loss":
        caption = "On the validation split."
        if mark is not None:
            caption += f" The dotted line is the checkpoint that was kept as the best, at {axis} {mark:g}."
        drawn.append(
            Figure(f"Validation {words(name)}", plots.curves([score], axis, words(name), mark), caption)
        )
    rate = _series(history, "train", "lr", "step")
    if rate.y:
        drawn.append(
            Figure(
                "Learning rate", plots.curves([rate], "step", "learning rate"), "As it was set at each log."
            )
        )
    return (Figures(tuple(drawn)),) if drawn else ()


def _at_step(history: Sequence[dict[str, Any]], step: int | None) -> dict[str, float]:
    """Return the validation record of a step; `run.json` itself holds the last one, not the best."""
    found = [line for line in history if line["split"] == "validation" and line["step"] == step]
    return found[-1] if found else {}


def _series(history: Sequence[dict[str, Any]], split: str, name: str, axis: str) -> plots.Line:
    """Return one recorded value over ``axis``, averaged where several records share a place."""
    places: dict[float, list[float]] = {}
    for line in history:
        if line["split"] == split and line.get(name) is not None:
            places.setdefault(line[axis], []).append(line[name])
    legend = " ".join((split, *name.split("_")[1:])) if name.startswith("loss_") else split
    return plots.Line(legend, list(places), [sum(values) / len(values) for values in places.values()])


def _artifact(folder: Path, run: dict[str, Any]) -> list[Section]:
    """Return the section about the artifact that the run names, with its tables if it is still there."""
    if not run.get("artifact"):
        return []
    place = Path(run["artifact"])
    target = place if place.is_absolute() else folder / place
    if not artifact.recognized(target):
        return [Section("Artifact", (Note(f"{place} is no longer there.", "warning"),))]
    link = Link(str(place), os.path.relpath(target / "report.html", folder))
    return [Section("Artifact", (link, *artifact.before_after(target)))]
