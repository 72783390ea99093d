from __future__ import annotations

import errno
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from fmdist.cli.failures import guard
from fmdist.cli.frame import Answer, verb
from fmdist.errors import DataError, FmdistError, Interrupted, Problem, RecipeError, TrainingError


def _raiser(error: BaseException) -> Callable[[], Any]:
    def run() -> Any:
        raise error

    return run


TWO = RecipeError.collect([Problem("unknown key", "a.b", line="r.yaml:1"), Problem("wrong type", "c", 3)])


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (TWO, 2, ["error: a.b (r.yaml:1): unknown key", "error: c: wrong type, got 3", "2 problems"]),
        (
            DataError(field="data.root", problem="is empty", fix="fill it"),
            2,
            ["error: data.root: is empty. Fill it"],
        ),
        (TrainingError(problem="the loss is nan"), 1, ["error: the loss is nan"]),
        (Interrupted(15, saved="run it again"), 143, ["error: interrupted by signal 15. Run it again"]),
        (KeyboardInterrupt(), 130, ["error: interrupted"]),
        (click.UsageError("No such thing."), 2, ["error: No such thing"]),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x"),
            1,
            [
                "error: no space left on the disk ([Errno 28] No space left on device: '/x'). "
                "Free some space and run the same command again"
            ],
        ),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 1, ["error: /x: permission denied"]),
    ],
)
def test_messages_and_codes(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, lines: list[str]
) -> None:
    assert guard(_raiser(error), []) == code
    out, err = capsys.readouterr()
    assert (out, err.splitlines()) == ("", lines)

    assert guard(_raiser(error), ["--json"]) == code
    out, err = capsys.readouterr()
    described = json.loads(out)["error"]
    assert err == ""
    assert described["exit_code"] == code
    assert described["type"] == type(error).__name__
    expected = list(error.problems) if isinstance(error, FmdistError) else described["problems"]
    assert len(described["problems"]) == len(expected)


def test_a_bug_is_one_line_and_its_traceback_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert guard(_raiser(ZeroDivisionError("oops")), []) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(
        "error: this is a bug in fmdist: ZeroDivisionError: oops. Report it with the traceback in "
    )
    assert err.count("\n") == 1
    kept = Path(err.split()[-1])
    assert "Traceback" in kept.read_text()
    kept.unlink()


def test_verbose_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert guard(_raiser(ZeroDivisionError("oops")), ["-v"]) == 1
    assert "Traceback" in capsys.readouterr().err
    assert guard(_raiser(TWO), ["--verbose"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_an_exit_code_passes_through() -> None:
    assert guard(lambda: 3, []) == 3
    assert guard(lambda: None, []) == 0


def _call(function: Callable[[], Answer], *words: str) -> int:
    command = verb("toy")(function)
    return guard(lambda: command.main(list(words), standalone_mode=False), list(words))


def test_the_log_goes_to_stderr_and_the_answer_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("fmdist.toy")

    def toy() -> Answer:
        logger.debug("details")
        logger.info("working")
        logger.warning("careful")
        return Answer({"x": 1}, "done", exit_code=7)

    assert _call(toy) == 7
    assert capsys.readouterr() == ("done\n", "working\nwarning: careful\n")
    assert _call(toy, "-q") == 7
    assert capsys.readouterr() == ("done\n", "warning: careful\n")
    assert _call(toy, "-v", "--json") == 7
    out, err = capsys.readouterr()
    assert json.loads(out) == {"x": 1}
    assert err == "fmdist.toy: details\nworking\nwarning: careful\n"
    assert logging.getLogger("fmdist").handlers == []
    assert logging.getLogger("fmdist").propagate


def test_control_c_in_a_verb(capsys: pytest.CaptureFixture[str]) -> None:
    def toy() -> Answer:
        raise KeyboardInterrupt

    assert _call(toy) == 130
    assert (
        capsys.readouterr().err
        == "error: interrupted by signal 2. The same command goes on from what is finished\n"
    )
