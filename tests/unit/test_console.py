from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from fmdist import console
from fmdist.console import Progress, human_bytes, human_duration, table


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [100.0]
    monkeypatch.setattr("fmdist.console.time.monotonic", lambda: now[0])
    yield now
    console.set_quiet(False)


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (46_700_000, "46.7 MB"), (2.5e9, "2.5 GB"), (1e13, "10 TB")],
)
def test_human_bytes(size: float, text: str) -> None:
    assert human_bytes(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.0123, "12 ms"),
        (0.25, "0.25 s"),
        (42.4, "42 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7800, "2 h 10 min"),
        (273_600, "3 d 4 h"),
    ],
)
def test_human_duration(seconds: float, text: str) -> None:
    assert human_duration(seconds) == text


ROWS: list[list[object]] = [["a", 0.98765, "x"], ["long name", None, "[b]y"]]


def test_plain_table_aligns_numbers_right() -> None:
    text = table("Title", ["name", "score", "note"], ROWS)
    assert text.splitlines() == [
        "Title",
        "name        score  note",
        "a          0.9877  x",
        "long name       -  [b]y",
    ]
    assert table("", ["name"], []) == "name"


def test_terminal_table_holds_the_same_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", _Terminal())
    monkeypatch.setenv("COLUMNS", "80")
    text = table("Title", ["name", "score", "note"], ROWS)
    for cell in ("Title", "score", "long name", "0.9877", "[b]y", "│"):
        assert cell in text


def test_plain_progress_writes_a_line_now_and_then(clock: list[float]) -> None:
    stream = io.StringIO()
    progress = Progress("train", total=100, stream=stream, interval_s=10)
    progress.update(1, {"loss": 3.0})
    assert stream.getvalue() == ""
    clock[0] += 10
    assert progress.due()
    progress.update(20, {"loss": 0.51234})
    progress.update(21, {"loss": 0.5})
    assert not progress.due()
    clock[0] += 10
    progress.close(100, {"loss": 0.25})
    assert stream.getvalue().splitlines() == [
        "train 20/100  20%  2 step/s  40 s left  loss 0.5123",
        "train 100/100 100%  5 step/s  loss 0.25",
    ]


def test_a_resumed_loop_counts_only_its_own_rate(clock: list[float]) -> None:
    stream = io.StringIO()
    progress = Progress("train", total=100, initial=90, unit="sample", stream=stream)
    clock[0] += 10
    progress.close(95, {})
    assert stream.getvalue() == "train 95/100  95%  0.5 sample/s  10 s left\n"


def test_terminal_progress_redraws_one_line(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    stream = _Terminal()
    progress = Progress("train", stream=stream)
    clock[0] += 1
    progress.update(5, {"a_metric_with_a_long_name": 1.0})
    console.clear_line()
    progress.close(10, {})
    console.clear_line()
    drawn = stream.getvalue().split("\r\x1b[K")
    assert drawn == ["", "train 5  5 step/s  a_metric_w", "", "train 10  10 step/s\n"]


def test_quiet_writes_nothing(clock: list[float]) -> None:
    console.set_quiet(True)
    stream = io.StringIO()
    progress = Progress("train", stream=stream)
    clock[0] += 100
    progress.update(1, {})
    progress.close(2, {})
    assert stream.getvalue() == ""
