"""``fmdist``: the entry point and the list of verbs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from fmdist.cli import (
    compress,
    doctor,
    evaluate,
    failures,
    init,
    listing,
    predict,
    report,
    run,
    runs,
    schema,
    show,
    train,
    validate,
)
from fmdist.cli.frame import Answer, Verb

VERBS: dict[str, Callable[..., Answer]] = {
    "run": run.run,
    "train": train.train,
    "compress": compress.compress,
    "evaluate": evaluate.evaluate,
    "predict": predict.predict,
    "report": report.report,
    "init": init.init,
    "validate": validate.validate,
    "show": show.show,
    "schema": schema.schema,
    "runs": runs.runs,
    "doctor": doctor.doctor,
}
"""What users type -> the function that does it, in the order of ``--help``."""

app = typer.Typer(
    name="fmdist",
    help="From one recipe to a model that is trained, compressed and verified.",
    pretty_exceptions_enable=False,
    # Rich's help, and the types of the completion options, would each double the time of a light verb.
    rich_markup_mode=None,
    add_completion=False,
)
for _name, _function in VERBS.items():
    app.command(_name, cls=Verb)(_function)
app.add_typer(listing.app, name="list")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 (done), 1 (failed), 2 (the user's mistake) or 130/143 (stopped)."""
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]

    def call() -> Any:
        return app(words, prog_name="fmdist", standalone_mode=False)

    return failures.guard(call, words)
