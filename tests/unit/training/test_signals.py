"""Work that a signal ends at once, even where a library swallows the exception."""

from __future__ import annotations

import contextlib
import signal
import sys

import pytest

from fmdist.errors import Interrupted
from fmdist.training.signals import EndAtOnce

NUMBERS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


@NUMBERS
def test_a_signal_ends_the_work_where_it_is(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    reached = False
    with pytest.raises(Interrupted, match=rf"signal {int(number)}. All is kept") as caught:  # noqa: PT012, SIM117
        with EndAtOnce("all is kept"):
            signal.raise_signal(number)
            reached = True
    assert not reached
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) == before


@NUMBERS
def test_a_swallowed_signal_ends_it_at_the_next_check(number: signal.Signals) -> None:
    ending = EndAtOnce("all is kept")
    with contextlib.suppress(Interrupted), ending:
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(number)
        with pytest.raises(Interrupted):
            ending.check()


def test_a_swallowed_signal_ends_it_at_the_end() -> None:
    with pytest.raises(Interrupted), EndAtOnce("all is kept"), contextlib.suppress(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


class Dropped:
    """Is sent a signal where Python swallows what it raises, or raises an error there."""

    def __init__(self, number: signal.Signals | None) -> None:
        self.number = number

    def __del__(self) -> None:
        if self.number is None:
            message = "not of a signal"
            raise ValueError(message)
        signal.raise_signal(self.number)


@NUMBERS
def test_a_signal_in_a_destructor_prints_no_traceback(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[BaseException | None] = []
    hook = lambda what: told.append(what.exc_value)  # noqa: E731
    monkeypatch.setattr(sys, "unraisablehook", hook)
    with pytest.raises(Interrupted), EndAtOnce("all is kept"):  # noqa: PT012
        Dropped(None)
        Dropped(number)
    assert sys.unraisablehook is hook
    assert [type(error) for error in told] == [ValueError]


def test_other_errors_pass() -> None:
    with pytest.raises(ZeroDivisionError), EndAtOnce("all is kept"):
        1 / 0  # noqa: B018
