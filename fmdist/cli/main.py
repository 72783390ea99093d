"""``fmdist``: the entry point and the list of verbs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from fmdist.cli import doctor, failures, frame, init, listing, runs, schema, show, validate

VERBS: dict[str, Callable[..., frame.Answer]] = {
    "validate": validate.validate,
    "show": show.show,
    "init": init.init,
    "list": listing.list_kinds,
    "schema": schema.schema,
    "runs": runs.runs,
    "doctor": doctor.doctor,
}
"""What users type -> the function that does it, in the order of ``--help``."""

app = typer.Typer(
    name="fmdist",
    help="From one recipe to a model that is trained, compressed and verified.",
    pretty_exceptions_enable=False,
    # Rich's help would cost each start as much as everything else together.
    rich_markup_mode=None,
)
for _name, _function in VERBS.items():
    app.command(_name, cls=frame.Verb)(_function)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 if done, 1 if it failed, 2 for the user's mistake, 130/143 if stopped."""
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]

    def run() -> Any:
        return app(words, prog_name="fmdist", standalone_mode=False)

    return failures.guard(run, words)
