"""What people read while fmdist works: tables, sizes, times and the live progress line.

Results go to stdout, progress to stderr. Logging handlers are the command line's business, not ours.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import TextIO

_quiet = False
_live: Progress | None = None


def set_quiet(quiet: bool) -> None:
    """Turn the progress of this process off or on again."""
    global _quiet
    _quiet = quiet


def clear_line() -> None:
    """Remove the live progress line before something else is written; its next update draws it again."""
    if _live is not None:
        _live.clear()


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table: drawn by rich if stdout is a terminal, else aligned plain text.

    Columns in which every value is a number are aligned to the right. None is shown as ``-``.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    numeric = [_is_numeric([row[position] for row in rows]) for position in range(len(columns))]
    if sys.stdout.isatty():
        return _rich_table(title, columns, cells, numeric)
    lines = [list(columns), *cells]
    widths = [max(len(line[position]) for line in lines) for position in range(len(columns))]
    text = [title] if title else []
    for line in lines:
        padded = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        )
        text.append("  ".join(padded).rstrip())
    return "\n".join(text)


def human_bytes(size_bytes: float) -> str:
    """Return a size in powers of 1000: ``812 B``, ``1.3 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(size_bytes) < 999.5 or (unit == "B" and abs(size_bytes) < 1000):
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.3g} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:,.3g} TB" if size_bytes < 999.5 else f"{size_bytes:,.0f} TB"


def human_duration(seconds: float) -> str:
    """Return a duration with two units at most: ``3.1 ms``, ``42 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.2g} ms" if seconds else "0 s"
    if seconds < 9.95:
        return f"{seconds:.2g} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


class Progress:
    """One line that says how far a loop is: share, rate, time left and the latest values.

    On a terminal the line is redrawn in place; elsewhere a new line is written now and then and at the end.
    Reading a value from a GPU waits for it: ask `due` first and skip the work when nothing would be drawn.

    Args:
        label: what is counted, in front of the line.
        total: when it is done; None if unknown.
        unit: what one count is, for the rate: ``step``.
        initial: counts done before this process (a resumed run), which the rate leaves out.
        stream: where to write; stderr by default.
        interval_s: seconds between two drawings; by default 0.1 on a terminal, 10 elsewhere.
    """

    def __init__(
        self,
        label: str,
        total: int | None = None,
        unit: str = "step",
        initial: int = 0,
        stream: TextIO | None = None,
        interval_s: float | None = None,
    ) -> None:
        self._label, self._total, self._unit, self._initial = label, total, unit, initial
        self._stream = sys.stderr if stream is None else stream
        self._live = self._stream.isatty()
        self._interval = (0.1 if self._live else 10.0) if interval_s is None else interval_s
        self._start = time.monotonic()
        self._next = float("inf") if _quiet else self._start + self._interval
        self._done, self._values = initial, dict[str, float]()

    def due(self) -> bool:
        """Return whether `update` would draw now."""
        return time.monotonic() >= self._next

    def update(self, done: int, values: Mapping[str, float]) -> None:
        """Say that ``done`` counts are done; draws if it is time, else costs well under a microsecond."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + self._interval
        self._done, self._values = done, dict(values)
        self._draw(now)

    def close(self, done: int, values: Mapping[str, float]) -> None:
        """Write the last state and end the line."""
        if _quiet:
            return
        drawn = (self._done, self._values) == (done, values)
        self._done, self._values = done, dict(values)
        if self._live or not drawn:
            self._draw(time.monotonic())
        if self._live:
            self._stream.write("\n")
        self._stream.flush()
        self._next = float("inf")
        _show(None)

    def clear(self) -> None:
        """Remove the line from the terminal until the next update."""
        self._stream.write("\r\x1b[K")
        self._stream.flush()

    def _draw(self, now: float) -> None:
        line = self._line(now - self._start)
        if self._live:
            import shutil

            width = shutil.get_terminal_size().columns - 1
            self._stream.write(f"\r\x1b[K{line[:width]}")
            _show(self)
        else:
            self._stream.write(f"{line}\n")
        self._stream.flush()

    def _line(self, seconds: float) -> str:
        parts = [f"{self._label} {self._done}"]
        rate = (self._done - self._initial) / seconds if seconds > 0 else 0.0
        if self._total:
            parts[0] += f"/{self._total} {self._done / self._total:4.0%}"
        if rate > 0:
            parts.append(f"{rate:.3g} {self._unit}/s")
            if self._total and self._total > self._done:
                parts.append(f"{human_duration((self._total - self._done) / rate)} left")
        parts += [f"{name} {value:.4g}" for name, value in self._values.items()]
        return "  ".join(parts)


def _show(progress: Progress | None) -> None:
    global _live
    _live = progress


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_numeric(values: Sequence[object]) -> bool:
    return all(isinstance(value, int | float) or value is None for value in values)


def _rich_table(
    title: str, columns: Sequence[str], cells: Sequence[Sequence[str]], numeric: Sequence[bool]
) -> str:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    drawn = Table(title=title or None, title_justify="left")
    for name, right in zip(columns, numeric, strict=True):
        drawn.add_column(name, justify="right" if right else "left")
    for row in cells:
        drawn.add_row(*(Text(cell) for cell in row))
    console = Console()
    with console.capture() as capture:
        console.print(drawn)
    return capture.get().rstrip("\n")
