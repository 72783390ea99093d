"""What every verb shares: its options, its output, its log, and how it ends.

A verb is a function that returns an `Answer`; `fmdist.cli.main` lists it::

    @verb()
    @with_recipe
    def validate(recipe: Path, overrides: tuple[str, ...]) -> Answer:
        "Check a recipe and list all its mistakes."
        from fmdist import stages

        stages.load_recipe(recipe, overrides)
        return Answer({"valid": True}, f"{recipe} is valid")

Plain click: typer converts values through pydantic, whose import would double the time of a light verb.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import click

from fmdist import console
from fmdist.errors import Interrupted

FilePath = click.Path(path_type=Path)
"""A path that the verb itself checks, so that a missing one gives the same message as from Python."""


class Answer(NamedTuple):
    """What a verb says when it is done."""

    data: Any
    """Plain JSON values, for ``--json``."""
    text: str
    """The same for people; empty says nothing."""
    exit_code: int = 0


SHARED: Sequence[click.Parameter] = (
    click.Option(["--json", "as_json"], is_flag=True, help="Print one JSON object."),
    click.Option(
        ["--plugins"],
        multiple=True,
        type=FilePath,
        metavar="FOLDER",
        help="Use the models/, tasks/, ... in this folder too; repeatable.",
    ),
    click.Option(["-v", "--verbose"], is_flag=True, help="Log more; show tracebacks."),
    click.Option(["-q", "--quiet"], is_flag=True, help="No progress, only warnings."),
)
"""The options that all verbs have."""


class Verb(click.Command):
    """A command with the shared options, which it carries out around the verb's own function."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the verb's parameters, the shared ones, and ``--help``."""
        own = super().get_params(ctx)
        return [*own[:-1], *SHARED, own[-1]]

    def invoke(self, ctx: click.Context) -> int:
        """Run the verb, write its answer to stdout and return the exit code."""
        quiet, verbose = ctx.params.pop("quiet"), ctx.params.pop("verbose")
        as_json, plugins = ctx.params.pop("as_json"), ctx.params.pop("plugins")
        if plugins:
            from fmdist import component

            for folder in plugins:
                component.add_plugin_folder(folder)
        with _talking(quiet, verbose):
            try:
                answer: Answer = super().invoke(ctx)
            except KeyboardInterrupt:
                raise Interrupted(
                    signal.SIGINT, saved="the same command goes on from what is finished"
                ) from None
            write(json.dumps(answer.data, indent=2, allow_nan=False) if as_json else answer.text)
        return answer.exit_code


def verb(name: str | None = None) -> Callable[[Callable[..., Answer]], click.Command]:
    """Make a function that returns an `Answer` a verb, called like the function unless ``name`` is given."""
    return click.command(name, cls=Verb)


def with_recipe(function: Callable[..., Answer]) -> Callable[..., Answer]:
    """Give a verb the arguments ``recipe`` (a Path) and ``overrides`` (a tuple of ``path=value``)."""
    overrides = click.argument("overrides", nargs=-1, metavar="[PATH=VALUE]...")
    return click.argument("recipe", type=FilePath)(overrides(function))


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


@contextmanager
def _talking(quiet: bool, verbose: bool) -> Iterator[None]:
    """Log to stderr and show progress as asked, for one command: tests and notebooks run several."""
    logger = logging.getLogger("fmdist")
    before = logger.handlers, logger.level, logger.propagate
    handler = _LogHandler(sys.stderr)
    handler.setFormatter(_LogFormatter())
    logger.handlers, logger.propagate = [handler], False
    logger.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    console.set_quiet(quiet)
    try:
        yield
    finally:
        console.set_quiet(False)
        logger.handlers, level, logger.propagate = before
        logger.setLevel(level)
