"""Who hangs, and who only works or waits."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from fmdist.background import running
from fmdist.training.group import Group
from fmdist.training.watchdog import Watchdog

SECONDS = 0.4


def beat(folder: Path, rank: int, meetings: int, alive: int = 0) -> None:
    (folder / f"{rank}.beat").write_text(
        json.dumps({"meetings": meetings, "alive": alive, "host": f"h{rank}"})
    )


def group(rank: int = 0, meetings: int = 7) -> Group:
    found = Group(rank, 2, torch.device("cpu"))
    found.meetings = meetings
    return found


@pytest.mark.parametrize(
    ("meetings", "said"),
    [(6, "worker 1 on h1 did nothing for 0.4 s, and the others wait"), (7, "worker 0 on"), (8, "")],
    ids=["behind", "level", "ahead"],
)
def test_the_one_that_met_the_others_less_often_hangs(meetings: int, said: str, tmp_path: Path) -> None:
    told: list[str] = []
    beat(tmp_path, 1, meetings)
    with running(Watchdog(group(), SECONDS, tmp_path, told.append).watch, "watchdog"):
        # Who is behind says nothing: the others do.
        until = time.monotonic() + (60 if said else 4 * SECONDS)
        while not told and time.monotonic() < until:
            time.sleep(SECONDS / 8)
    assert [line.startswith(said) for line in told] == ([True] if said else [])


def test_signs_of_work_on_any_process_keep_it_quiet(tmp_path: Path) -> None:
    told: list[str] = []
    with running(Watchdog(group(), 4 * SECONDS, tmp_path, told.append).watch, "watchdog"):
        for number in range(60):
            beat(tmp_path, 1, 6, alive=number)
            time.sleep(SECONDS / 10)
    assert told == []


def test_a_busy_process_is_alive() -> None:
    one = group()
    with one.busy():
        time.sleep(1.3)
    assert one.alive >= 1
    alone = Group(0, 1, torch.device("cpu"))
    with alone.busy():
        pass
