"""What a report is made of, and how values are spelled in it; `template.html` draws each block."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

MISSING = "n/a"
"""Shown where nothing was recorded."""

LISTED = 40
"""Items of a list, or rows of a table as long as the list of classes, that are shown before it is cut."""


@dataclass(frozen=True)
class Tile:
    """A headline number."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of text; every column after the first ``text_columns`` is set flush right, as numbers are."""

    type: ClassVar[str] = "table"
    columns: tuple[str, ...]
    """Headings; empty for a list of facts."""
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    text_columns: int = 1


@dataclass(frozen=True)
class Figure:
    """A plot as an SVG element."""

    title: str
    svg: str
    caption: str


@dataclass(frozen=True)
class Figures:
    """Plots side by side, as many as the page is wide."""

    type: ClassVar[str] = "figures"
    items: tuple[Figure, ...]


@dataclass(frozen=True)
class Cell:
    """One cell of a matrix; ``share`` (0 to 100) is the depth of its colour."""

    text: str
    share: int
    tone: str
    hint: str


@dataclass(frozen=True)
class Matrix:
    """A coloured square table with the same names on both axes."""

    type: ClassVar[str] = "matrix"
    names: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    caption: str


@dataclass(frozen=True)
class Example:
    """One sample with its image (a data URI) and what was said about it."""

    image: str
    title: str
    note: str
    right: bool


@dataclass(frozen=True)
class Gallery:
    """Examples side by side under a heading."""

    type: ClassVar[str] = "gallery"
    title: str
    items: tuple[Example, ...]
    caption: str


@dataclass(frozen=True)
class Code:
    """Text as it stands in a file."""

    type: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Note:
    """A sentence; ``tone`` is ``plain``, ``good`` or ``warning``."""

    type: ClassVar[str] = "note"
    text: str
    tone: str = "plain"


@dataclass(frozen=True)
class Link:
    """A link to another file, relative to the report."""

    type: ClassVar[str] = "link"
    text: str
    target: str


Block = Table | Figures | Matrix | Gallery | Code | Note | Link


@dataclass(frozen=True)
class Section:
    """A heading and the blocks below it."""

    title: str
    blocks: tuple[Block, ...]
    side_by_side: bool = False
    """Tables that are narrow enough share a row; sentences keep their own."""

    @property
    def anchor(self) -> str:
        """Return the fragment by which the page's navigation finds the section."""
        return "-".join(self.title.lower().split())


@dataclass(frozen=True)
class Page:
    """A whole report; sections without blocks are left out."""

    kind: str
    name: str
    status: str
    subtitle: str
    tiles: tuple[Tile, ...]
    sections: tuple[Section, ...]


def number(value: Any) -> str:
    """Return a number for reading: four decimals near one, thousands separated; `MISSING` for None."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        return f"{value:.3g}"
    return f"{value:,.{4 if size < 10 else 2 if size < 1000 else 0}f}"


def interval(bounds: Sequence[float] | None) -> str:
    """Return ``0.9700 to 0.9950``."""
    return f"{number(bounds[0])} to {number(bounds[1])}" if bounds else MISSING


def duration(seconds: float | None) -> str:
    """Return seconds as ``12.3 s``, ``4 min 05 s`` or ``2 h 03 min``."""
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds >= 0.1 else f"{1000 * seconds:.1f} ms"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(count: float | None) -> str:
    """Return a number of bytes in decimal units, as ``1.24 MB``."""
    if count is None:
        return MISSING
    for unit, bytes_per_unit in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= bytes_per_unit:
            return f"{count / bytes_per_unit:.3g} {unit}"
    return f"{count:.0f} bytes"


def words(name: str) -> str:
    """Return a key as words: ``learning_rate`` -> ``learning rate``."""
    return name.replace("_", " ")


def facts(record: Mapping[str, Any], caption: str = "") -> Table:
    """Return a nested mapping as a two-column table of facts; nested keys are joined by a dot."""
    return Table((), tuple(_flat(record, "")), caption, text_columns=2)


def _flat(record: Mapping[str, Any], prefix: str) -> list[tuple[str, str]]:
    rows: list[tuple[str, str]] = []
    for name, value in record.items():
        label = prefix + words(str(name))
        if isinstance(value, Mapping) and not all(isinstance(item, int | float) for item in value.values()):
            rows += _flat(value, f"{label} · ")
        elif isinstance(value, Mapping):
            rows.append((label, _listed([f"{key} {number(item)}" for key, item in value.items()])))
        elif isinstance(value, list | tuple):
            rows.append((label, _listed([number(item) for item in value])))
        else:
            rows.append((label, number(value)))
    return rows


def _listed(items: Sequence[str]) -> str:
    more = f", ... ({len(items):,} in all)" if len(items) > LISTED else ""
    return ", ".join(items[:LISTED]) + more if items else "none"
