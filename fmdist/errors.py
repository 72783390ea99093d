"""Every error that fmdist raises on purpose.

::

    FmdistError                 exit code
    ├── RecipeError             2   mistakes in a recipe, all of them at once
    ├── UsageError              2   a wrong command line: a path, a name, an option
    ├── DataError               2   data that can't be read or can't be used
    ├── CheckpointError         2   a checkpoint, run or artifact that can't be used as asked
    ├── CapabilityError         2   a combination that is known not to work, with the reason
    ├── DependencyMissing       2   an extra that is not installed
    ├── TrainingError           1   training went wrong (for example a loss that is not finite)
    ├── CompressionError        1   a pass did nothing, broke the model, or missed its budget
    └── Interrupted        130/143  SIGINT or SIGTERM, after the state was saved
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar


class _Unset(Enum):
    """A value of its own, the same in every process."""

    UNSET = "unset"


UNSET: Any = _Unset.UNSET
"""Stands for "no value to show", since None is a value that a user can have written."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``did you mean 'resnet'?`` for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f"did you mean '{close[0]}'?" if close else ""


@dataclass(frozen=True)
class Problem:
    """One mistake: where it is, what was given, what is allowed and how to mend it."""

    problem: str
    field: str = ""
    value: Any = UNSET
    allowed: str = ""
    fix: str = ""
    line: str = ""

    def __str__(self) -> str:
        where = " ".join(part for part in (self.field, f"({self.line})" if self.line else "") if part)
        text = f"{where}: {self.problem}" if where else self.problem
        if self.value is not UNSET:
            shown = repr(self.value)
            text += f", got {shown if len(shown) <= 200 else shown[:197] + '...'}"
        if self.allowed:
            text += f"; allowed: {self.allowed}"
        return f"{text}. {self.fix[0].upper()}{self.fix[1:]}" if self.fix else text

    def to_json(self) -> dict[str, str]:
        """Return the non-empty parts as strings, for ``--json``."""
        parts = {"field": self.field, "problem": self.problem, "allowed": self.allowed, "fix": self.fix}
        if self.value is not UNSET:
            parts["value"] = repr(self.value)
        return {name: text for name, text in (parts | {"line": self.line}).items() if text}


class FmdistError(Exception):
    """The root of the tree; holds one or more `Problem` s and the exit code of the command line.

    Args:
        problem: what is wrong, in one clause.
        field: the recipe path, option or file that it is about.
        value: what was given.
        allowed: what would have been accepted.
        fix: what to do now.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self, *, problem: str, field: str = "", value: Any = UNSET, allowed: str = "", fix: str = ""
    ) -> None:
        self.problems: tuple[Problem, ...] = (Problem(problem, field, value, allowed, fix),)
        super().__init__(str(self.problems[0]))

    def __reduce__(self) -> tuple[Any, ...]:
        """Let an error cross from one process to another as it is."""
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(kind: type[FmdistError], arguments: tuple[Any, ...], state: dict[str, Any]) -> FmdistError:
    error = kind.__new__(kind, *arguments)
    error.args = arguments
    error.__dict__.update(state)
    return error


class RecipeError(FmdistError):
    """A recipe with one or more mistakes; `problems` lists them all."""

    exit_code = 2

    @classmethod
    def collect(cls, problems: Iterable[Problem]) -> RecipeError:
        """Return one error that carries all the ``problems`` of a recipe."""
        found = tuple(problems)
        error = cls(problem="\n".join(str(problem) for problem in found))
        error.problems = found
        return error


class UsageError(FmdistError):
    """A wrong path, name or option on the command line or in the Python API."""

    exit_code = 2


class DataError(FmdistError):
    """Data that can't be read, is empty, or doesn't fit the task."""

    exit_code = 2


class CheckpointError(FmdistError):
    """A checkpoint, run or artifact that is corrupt, foreign, locked or of an unknown format."""

    exit_code = 2


class CapabilityError(FmdistError):
    """A combination that is known not to work; the message says why."""

    exit_code = 2


class DependencyMissing(FmdistError):
    """A package of an extra that isn't installed; the message names the extra."""

    exit_code = 2


class TrainingError(FmdistError):
    """Training that can't go on."""


class CompressionError(FmdistError):
    """A compression stage that changed nothing, broke the model, or missed its budget."""


class Interrupted(FmdistError):
    """SIGINT or SIGTERM arrived and the state was saved; `exit_code` is 130 or 143."""

    def __init__(self, signal_number: int, saved: str) -> None:
        super().__init__(problem=f"interrupted by signal {signal_number}", fix=saved)
        self.exit_code = 128 + signal_number  # type: ignore[misc]
