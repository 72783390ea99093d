"""What every verb shares: its options, its output, its log, and how it ends.

A verb is a function that returns an `Answer`; `fmdist.cli.main` names it and makes it a `Verb`::

    def validate(recipe: RecipePath, overrides: Overrides = None) -> Answer:
        "Check a recipe and list all its mistakes."
        from fmdist import stages

        stages.load_recipe(recipe, overrides or [])
        return Answer({"valid": True}, f"{recipe} is valid")

Paths are not declared as existing: the verb checks them, so that a missing one gives the same message as
from Python.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand
from typer.main import get_command

from fmdist import console
from fmdist.errors import Interrupted

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PATH=VALUE]...", help="Overrides such as train.lr=1e-3.", show_default=False),
]


class Answer(NamedTuple):
    """What a verb says when it is done."""

    data: Any
    """Plain JSON values, for ``--json``."""
    text: str
    """The same for people; empty says nothing."""
    exit_code: int = 0


def _shared(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    plugins: Annotated[
        list[str] | None,
        typer.Option(
            "--plugins", metavar="FOLDER", help="Use the models/, tasks/, ... here too; repeatable."
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log more; show tracebacks.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only warnings.")] = False,
) -> None:
    """Declare the options that all verbs have."""


@cache
def _shared_options() -> list[Any]:
    declaring = typer.Typer(add_completion=False, rich_markup_mode=None)
    declaring.command()(_shared)
    options: list[Any] = get_command(declaring).params
    for option in options:
        if option.name == "plugins":
            # Typer converts values through pydantic, whose import would double the time of a light verb.
            option.process_value = lambda _, values: list(values or ())
    return options


class Verb(TyperCommand):
    """A command with the shared options, which it carries out around the verb's own function."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the verb's parameters, the shared ones, and ``--help``."""
        own = super().get_params(ctx)
        return [*own[:-1], *_shared_options(), own[-1]]

    def invoke(self, ctx: Any) -> int:
        """Run the verb, write its answer to stdout and return the exit code."""
        quiet, verbose = ctx.params.pop("quiet"), ctx.params.pop("verbose")
        as_json, plugins = ctx.params.pop("as_json"), ctx.params.pop("plugins")
        console.set_quiet(quiet)
        _configure_logging(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
        if plugins:
            from fmdist import component

            for folder in plugins:
                component.add_plugin_folder(Path(folder))
        try:
            answer: Answer = super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted(signal.SIGINT, saved="") from None
        write(json.dumps(answer.data, indent=2, allow_nan=False) if as_json else answer.text)
        return answer.exit_code


def write(text: str) -> None:
    """Write a verb's result to stdout, flushed while a closed pipe can still be handled."""
    console.clear_line()
    if text:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()


class _LogHandler(logging.StreamHandler[Any]):
    """Writes to stderr, above the live progress line."""

    def emit(self, record: logging.LogRecord) -> None:
        console.clear_line()
        super().emit(record)


class _LogFormatter(logging.Formatter):
    """Plain words for what goes well, the level in front of what doesn't."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        if record.levelno == logging.DEBUG:
            return f"{record.name}: {text}"
        return text if record.levelno == logging.INFO else f"{record.levelname.lower()}: {text}"


def _configure_logging(level: int) -> None:
    handler = _LogHandler(sys.stderr)
    handler.setFormatter(_LogFormatter())
    logger = logging.getLogger("fmdist")
    logger.handlers = [handler]
    logger.setLevel(level)
    logger.propagate = False
