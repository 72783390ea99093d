"""``fmdist``: the entry point and the list of verbs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import click

from fmdist.cli import failures
from fmdist.cli.compress import compress
from fmdist.cli.doctor import doctor
from fmdist.cli.evaluate import evaluate
from fmdist.cli.init import init
from fmdist.cli.jobs import jobs
from fmdist.cli.listing import list_kinds
from fmdist.cli.predict import predict
from fmdist.cli.report import report
from fmdist.cli.run import run
from fmdist.cli.runs import runs
from fmdist.cli.schema import schema
from fmdist.cli.show import show
from fmdist.cli.submit import submit
from fmdist.cli.train import train
from fmdist.cli.validate import validate

VERBS = (
    run,
    train,
    compress,
    evaluate,
    predict,
    report,
    submit,
    jobs,
    init,
    validate,
    show,
    schema,
    list_kinds,
    runs,
    doctor,
)
"""In the order of ``--help``; a new verb is one file and one entry here."""


class _InOrder(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


app = _InOrder(
    "fmdist",
    commands=VERBS,
    help="From one recipe to a model that is trained, compressed and verified.",
    epilog='Completion in bash: eval "$(_FMDIST_COMPLETE=bash_source fmdist)"; zsh and fish have theirs.',
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 (done), 1 (failed), 2 (the user's mistake) or 130/143 (stopped)."""
    words = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]

    def call() -> Any:
        return app.main(words, prog_name="fmdist", standalone_mode=False)

    return failures.guard(call, words)
