"""Plots as SVG elements that take their colours from the page, so that they follow light and dark.

Matplotlib's object interface only: no pyplot, no global figure. The same data gives the same bytes.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

INK, FAINT, FIRST, SECOND, THIRD = "#000001", "#000002", "#000003", "#000004", "#000005"
_VARIABLES = {INK: "--muted", FAINT: "--line", FIRST: "--first", SECOND: "--second", THIRD: "--good"}
"""Stand-in colour -> the page's CSS variable that replaces it; Matplotlib can't write variables."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Line:
    """A curve with its name in the legend."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Bar:
    """A bar with its name on the axis and the text at its end."""

    name: str
    value: float
    text: str


def curves(
    lines: Sequence[Line], x_label: str, y_label: str, mark: float | None = None, log: bool = False
) -> str:
    """Return curves over ``x``; values that are not finite leave gaps, ``mark`` is a dotted vertical line.

    With ``log`` the axis of values is logarithmic if they are positive and span a factor of more than thirty.
    """
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas(x_label, y_label)
        for line, color in zip(lines, itertools.cycle((FIRST, SECOND, THIRD)), strict=False):
            marker = "o" if len(line.x) <= 30 else ""
            axes.plot(line.x, line.y, color=color, label=line.name, marker=marker, markersize=3)
        if mark is not None:
            axes.axvline(mark, color=INK, linewidth=1, linestyle=":")
        values = np.concatenate([np.asarray(line.y, dtype=float) for line in lines])
        values = values[np.isfinite(values)]
        if log and len(values) and values.min() > 0 and values.max() > 30 * values.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        elif len(values) and values.min() == values.max() > 0:
            # Matplotlib would zoom into a constant until it looks like noise.
            axes.set_ylim(0, 2 * values.max())
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        if len(lines) > 1:
            axes.legend(loc="best")
        return _svg(figure)


def scatter(true: NDArray[np.floating], predicted: NDArray[np.floating]) -> str:
    """Return predicted over true values, (N,) each, with the diagonal on which both agree."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas("true", "predicted")
        low, high = min(true.min(), predicted.min()), max(true.max(), predicted.max())
        axes.plot([low, high], [low, high], color=INK, linewidth=1, linestyle=":")
        axes.plot(true, predicted, "o", color=FIRST, markersize=3, alpha=0.45, markeredgewidth=0)
        return _svg(figure)


def histogram(values: NDArray[np.floating], x_label: str) -> str:
    """Return how often each range of the finite ``values`` (N,) occurs, with a dotted line at zero."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas(x_label, "samples")
        # Bins need some width even where all the values are the same.
        margin = 1e-6 * max(float(np.abs(values).max()), 1e-6)
        bins = np.linspace(values.min() - margin, values.max() + margin, _bins(len(values)) + 1)
        axes.hist(values, bins=bins.tolist(), color=FIRST, alpha=0.8)
        axes.axvline(0, color=INK, linewidth=1, linestyle=":")
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        return _svg(figure)


def _bins(samples: int) -> int:
    return min(40, max(8, math.isqrt(samples)))


def bars(items: Sequence[Bar], x_label: str) -> str:
    """Return horizontal bars, the first on top, each with its text beside it."""
    with matplotlib.rc_context(_STYLE):
        figure, axes = _canvas(x_label, "", height=0.6 + 0.27 * len(items))
        drawn = axes.barh(range(len(items)), [bar.value for bar in items], color=FIRST, height=0.6)
        axes.bar_label(drawn, [bar.text for bar in items], padding=3)
        axes.set_yticks(range(len(items)), [bar.name for bar in items])
        axes.invert_yaxis()
        axes.grid(visible=False, axis="y")
        axes.margins(x=0.2)
        return _svg(figure)


def _canvas(x_label: str, y_label: str, height: float = 2.5) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.2, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_xlabel(x_label, parse_math=False)
    axes.set_ylabel(y_label, parse_math=False)
    return figure, axes


def _svg(figure: Figure) -> str:
    """Return the figure as an element for a page that holds several: own ids, no prologue, no metadata."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "fmdist"}):
        figure.savefig(
            buffer,
            format="svg",
            transparent=True,
            metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")),
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"| version="1.1"', "", text).replace("xlink:href", "href")
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)
    text = re.sub(r"\s*\n\s*", " ", text)
    for stand_in, variable in _VARIABLES.items():
        text = text.replace(stand_in, f"var({variable})")
    own = hashlib.sha256(text.encode()).hexdigest()[:8]
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{own}-", text)
