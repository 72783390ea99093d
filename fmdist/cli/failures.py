"""The one place where exceptions become messages and exit codes."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from click import Abort, ClickException

from fmdist import console
from fmdist.errors import FmdistError, Problem


class _Failure(NamedTuple):
    exit_code: int
    problems: tuple[Problem, ...]
    traceback: str = ""
    """For ``--json``: the file that holds the traceback of an unexpected exception."""


def guard(run: Callable[[], Any], words: list[str]) -> int:
    """Call ``run`` and return the exit code; exceptions become messages on stderr, or JSON on stdout.

    Args:
        run: returns an exit code or None.
        words: the command line's words: ``--json`` and ``--verbose`` count even if it can't be parsed.
    """
    try:
        return int(run() or 0)
    except SystemExit:
        raise
    except BaseException as error:
        console.clear_line()
        verbose = "--verbose" in words or "-v" in words
        failure = _explain(error, verbose)
        if verbose:
            import traceback

            _write(traceback.format_exc().rstrip())
        if "--json" in words:
            sys.stdout.write(json.dumps(_to_json(error, failure), indent=2) + "\n")
        else:
            _report(failure)
        return failure.exit_code


def _explain(error: BaseException, verbose: bool) -> _Failure:
    if isinstance(error, FmdistError):
        return _Failure(error.exit_code, error.problems)
    if isinstance(error, ClickException):
        return _Failure(error.exit_code, (_usage(error),))
    if isinstance(error, KeyboardInterrupt | Abort):
        return _Failure(130, (Problem("interrupted"),))
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        fix = "free some space and run the same command again"
        return _Failure(1, (Problem(f"no space left on the disk ({error})", fix=fix),))
    if isinstance(error, PermissionError):
        return _Failure(1, (Problem("permission denied", field=str(error.filename)),))
    said = f"{type(error).__name__}: {error}".rstrip(": ")
    if verbose:
        return _Failure(1, (Problem(f"this is a bug in fmdist: {said}"),))
    kept = _keep_traceback(error)
    fix = f"report it with the traceback in {kept}" if kept else "run again with -v for the traceback"
    return _Failure(1, (Problem(f"this is a bug in fmdist: {said}", fix=fix),), kept)


def _usage(error: ClickException) -> Problem:
    message = " ".join(error.format_message().split()).rstrip(".")
    context = getattr(error, "ctx", None)
    fix = f"see {context.command_path} --help" if context and not message.endswith("?") else ""
    return Problem(message, fix=fix)


def _keep_traceback(error: BaseException) -> str:
    import tempfile
    import traceback

    text = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="fmdist-", suffix=".traceback", delete=False, encoding="utf-8"
        ) as file:
            file.write(text)
    except OSError:
        return ""
    return str(Path(file.name))


def _report(failure: _Failure) -> None:
    for problem in failure.problems:
        _write(f"error: {problem}")
    if len(failure.problems) > 1:
        _write(f"{len(failure.problems)} problems")


def _to_json(error: BaseException, failure: _Failure) -> dict[str, Any]:
    described: dict[str, Any] = {
        "type": type(error).__name__,
        "exit_code": failure.exit_code,
        "problems": [problem.to_json() for problem in failure.problems],
    }
    if failure.traceback:
        described["traceback"] = failure.traceback
    return {"error": described}


def _write(text: str) -> None:
    sys.stderr.write(f"{text}\n")
