"""Finds the worker for which all others wait."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fmdist import storage
from fmdist.training.group import Group

BEATS = 4
"""How often in `Watchdog`'s time a process says how far it has come."""


class Watchdog:
    """Watches whether the processes of a group get on.

    Each writes into a folder how often it has come to where processes meet, and signs of work in between.
    Once none has given a sign for ``seconds``, those that have met the others less often hang.

    Args:
        group: the processes that train together.
        seconds: without progress after which it speaks.
        folder: that all processes see.
        bite: is told who hangs. It must end the process: the main thread waits for ever.
    """

    def __init__(self, group: Group, seconds: float, folder: Path, bite: Callable[[str], None]) -> None:
        self._group = group
        self._seconds = seconds
        self._folder = folder
        self._bite = bite
        self._host = socket.gethostname()

    def watch(self, done: threading.Event) -> None:
        """Watch until ``done`` is set."""
        ranks = range(self._group.size)
        seen: dict[int, dict[str, Any]] = {rank: {} for rank in ranks}
        since = dict.fromkeys(ranks, time.monotonic())
        while not done.is_set():
            beat = {"meetings": self._group.meetings, "alive": self._group.alive, "host": self._host}
            with suppress(OSError):  # a full disk is told where it matters
                storage.write_text(self._path(self._group.rank), json.dumps(beat))
            for rank in ranks:
                read = self._read(rank)
                if read and read != seen[rank]:
                    seen[rank], since[rank] = read, time.monotonic()
            if hanging := self._hanging(seen, since):
                self._bite(f"{hanging} did nothing for {self._seconds:g} s, and the others wait")
                return
            done.wait(self._seconds / BEATS)

    def _hanging(self, seen: Mapping[int, Mapping[str, Any]], since: Mapping[int, float]) -> str:
        """Return who hangs; empty if nobody does, or it is this process, whose others will say so."""
        late = time.monotonic() - self._seconds
        if any(moved > late for moved in since.values()):
            return ""
        met = {rank: beat.get("meetings", -1) for rank, beat in seen.items()}
        least = min(met.values())
        if met[self._group.rank] == least and max(met.values()) > least:
            return ""
        hosts = {rank: seen[rank].get("host", "an unknown host") for rank in met if met[rank] == least}
        return " and ".join(f"worker {rank} on {host}" for rank, host in hosts.items())

    def _read(self, rank: int) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            beat: dict[str, Any] = json.loads(self._path(rank).read_text(encoding="utf-8"))
            return beat
        return {}

    def _path(self, rank: int) -> Path:
        return self._folder / f"{rank}.beat"
