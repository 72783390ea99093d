"""SIGTERM and SIGINT: a flag that the loop reads between two steps, or an end at once."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from fmdist.errors import Interrupted

logger = logging.getLogger(__name__)


class _Handling:
    """While entered, SIGTERM and SIGINT are received; only the main thread may have handlers."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        raise NotImplementedError

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


class StopRequest(_Handling):
    """While entered, the first SIGTERM or SIGINT only sets `signal`; a second one acts as ever.

    Processes forked meanwhile (data loader workers) ignore both: Ctrl-C and a batch system signal the whole
    group, and the step that is to be saved still needs their batches. Outside the main thread the flag stays
    unset.

    Args:
        pass_on: is given the signal's number too, to tell others.
    """

    def __init__(self, pass_on: Callable[[int], None] | None = None) -> None:
        super().__init__()
        self.signal: int | None = None
        self._pass_on = pass_on

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return
        self.signal = number
        self._restore()
        if self._pass_on is not None:
            self._pass_on(number)
        logger.warning("signal %d: saving at the end of this step; once more ends at once", number)


class EndAtOnce(_Handling):
    """While entered, SIGTERM and SIGINT end the work with `Interrupted`, for work that is kept in stages.

    The handler raises KeyboardInterrupt, which may come to light in a callback or a destructor of a library
    that swallows it; `check` between two stages, or leaving, then ends the work. Of one that Python itself
    swallows no traceback is printed.

    Args:
        saved: what was kept, for the message.
    """

    def __init__(self, saved: str) -> None:
        super().__init__()
        self._saved = saved
        self._signal: int | None = None
        self._told_before = sys.unraisablehook

    def __enter__(self) -> Self:
        self._told_before, sys.unraisablehook = sys.unraisablehook, self._swallowed
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        sys.unraisablehook = self._told_before
        if isinstance(error, KeyboardInterrupt) or error is None:
            self.check()

    def check(self) -> None:
        """Raise `Interrupted` if a signal came."""
        if self._signal is not None:
            raise Interrupted(self._signal, self._saved)

    def _swallowed(self, told: sys.UnraisableHookArgs) -> None:
        if self._signal is None or not isinstance(told.exc_value, KeyboardInterrupt):
            self._told_before(told)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() == self._process:
            self._signal = number
        raise KeyboardInterrupt
