"""SIGTERM and SIGINT as a flag that the loop reads between two steps."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

logger = logging.getLogger(__name__)


class StopRequest:
    """While entered, the first SIGTERM or SIGINT only sets `signal`; a second one acts as ever.

    Processes forked meanwhile (data loader workers) ignore both: Ctrl-C and a batch system signal the whole
    group, and the step that is to be saved still needs their batches. Outside the main thread Python allows
    no handlers: there the flag stays unset.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._process = os.getpid()
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return
        self.signal = number
        self._restore()
        logger.warning("signal %d: saving at the end of this step; once more ends at once", number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
