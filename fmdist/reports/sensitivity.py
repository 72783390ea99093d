"""The report of a model's sensitivity; see `fmdist.compression.sensitivity` for the record's keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fmdist import storage
from fmdist.reports import document, plots
from fmdist.reports.layout import (
    LISTED,
    Block,
    Figure,
    Figures,
    Page,
    Section,
    Table,
    duration,
    number,
    words,
)

NAME = "sensitivity.html"

Record = Mapping[str, Any]
_DRAWN = 3
"""Curves that one plot can tell apart."""


def write(folder: Path, name: str, record: Record) -> Path:
    """Write ``sensitivity.html`` and return its path; like every report it needs nothing else.

    Args:
        folder: where to.
        name: of the run.
        record: what was measured.
    """
    file = folder / NAME
    storage.write_text(file, document.render(page(name, record)))
    return file


def page(name: str, record: Record) -> Page:
    """Return the report."""
    metric = words(record["primary"]["name"])
    rows: Sequence[Record] = record["layers"]
    sections = [
        Section("Most sensitive first", _overview(rows, metric)),
        *(
            Section(title, _changes(rows, key, of, metric))
            for title, key, of in (
                ("Weights made zero", "weights", "share"),
                ("Channels made zero", "channels", "share"),
                ("Weights rounded", "bits", "bits"),
            )
            if any(row[key] for row in rows)
        ),
    ]
    measured = f"{record['samples']:,} validation samples, {duration(record['seconds'])}"
    return Page(
        kind="sensitivity",
        name=name,
        status="",
        subtitle=f"{metric} {number(record['value'])} of the whole model on {measured}",
        tiles=(),
        sections=tuple(sections),
    )


def _overview(rows: Sequence[Record], metric: str) -> tuple[Block, ...]:
    caption = "Mean over the shares of weights made zero, in this layer alone"
    drawn = []
    for key, label in (("drop", f"drop of {metric}"), ("error", "relative output error")):
        bars = [
            plots.Bar(row["name"] or "(the model)", row[key], number(row[key]))
            for row in rows[:LISTED]
            if row[key] is not None
        ]
        if bars:
            drawn.append(
                Figure(label.capitalize(), plots.bars(bars, label), f"{caption}; shorter is better.")
            )
    return (Figures(tuple(drawn)),) if drawn else ()


def _changes(rows: Sequence[Record], key: str, of: str, metric: str) -> tuple[Block, ...]:
    measured = [row for row in rows if row[key]]
    blocks: list[Block] = []
    if of == "share":
        lines = []
        for row in measured[:_DRAWN]:
            points = [point for point in row[key] if point["error"] is not None]
            at = [0.0, *(100 * point[of] for point in points)]
            lines.append(plots.Line(row["name"] or "(the model)", at, [0.0, *(p["error"] for p in points)]))
        caption = "Relative RMS difference of the outputs, of the most sensitive layers."
        figure = plots.curves(lines, "% made zero", "output error")
        blocks.append(Figures((Figure("Output error", figure, caption),)))
    settings = [point[of] for point in measured[0][key]]
    heads = [f"{value:.0%}" if of == "share" else f"INT{value}" for value in settings]
    columns = ("layer", "type", *(f"{metric} at {head}" for head in heads), *(f"error at {h}" for h in heads))
    table = tuple(
        (
            row["name"] or "(the model)",
            row["type"],
            *(number(point["value"]) for point in row[key]),
            *(number(point["error"]) for point in row[key]),
        )
        for row in measured
    )
    blocks.append(Table(columns, table, "n/a: the outputs are no longer finite.", text_columns=2))
    return tuple(blocks)
