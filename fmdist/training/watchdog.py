"""Finds the worker for which all others wait."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from fmdist.training.group import Group

BEATS = 4
"""How often in `Watchdog`'s time a process says how far it has come."""


class Watchdog:
    """While entered, watches in a thread whether the processes of a group get on.

    Each writes into a folder how often it has arrived where processes meet. Once this one has not got on for
    ``seconds``, those that have arrived less often than others are the ones that hang.

    Args:
        group: the processes that train together.
        seconds: without progress after which it speaks.
        folder: that all processes see.
        bite: is told who hangs, from the thread. It must end the process: the main thread waits for ever.
    """

    def __init__(self, group: Group, seconds: float, folder: Path, bite: Callable[[str], None]) -> None:
        self._group = group
        self._seconds = seconds
        self._folder = folder
        self._bite = bite
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Self:
        if self._group.size > 1:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()

    def _watch(self) -> None:
        seen, since = -1, time.monotonic()
        while not self._done.is_set():
            arrivals = self._group.arrivals
            if arrivals != seen:
                seen, since = arrivals, time.monotonic()
            beat = {"arrivals": arrivals, "host": socket.gethostname()}
            with suppress(OSError):  # a full disk is told where it matters
                self._path(self._group.rank).write_text(json.dumps(beat), encoding="utf-8")
            if time.monotonic() - since > self._seconds and (hanging := self._hanging()):
                self._bite(f"{hanging} did nothing for {self._seconds:g} s, and the others wait")
                return
            self._done.wait(self._seconds / BEATS)

    def _hanging(self) -> str:
        """Return who is behind; empty if that is this process, whose others will say so."""
        beats = {rank: self._read(rank) for rank in range(self._group.size)}
        counts = {rank: beat.get("arrivals", -1) for rank, beat in beats.items()}
        least = min(counts.values())
        if counts[self._group.rank] == least and max(counts.values()) > least:
            return ""
        behind = [rank for rank, count in counts.items() if count == least]
        return " and ".join(
            f"worker {rank} on {beats[rank].get('host', 'an unknown host')}" for rank in behind
        )

    def _read(self, rank: int) -> dict[str, Any]:
        with suppress(OSError, ValueError):
            beat: dict[str, Any] = json.loads(self._path(rank).read_text(encoding="utf-8"))
            return beat
        return {}

    def _path(self, rank: int) -> Path:
        return self._folder / f"{rank}.beat"
