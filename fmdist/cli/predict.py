"""``fmdist predict``: answers for files of the user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fmdist.cli.evaluate import with_runtime, with_target
from fmdist.cli.frame import Answer, FilePath, verb


@verb()
@with_target
@click.argument("inputs", type=FilePath, nargs=-1, required=True, metavar="INPUT...")
@with_runtime
def predict(target: Path, inputs: tuple[Path, ...], runtime: str) -> Answer:
    """Answer for images and for rows of tables, with probabilities."""
    from fmdist import stages

    answers = stages.predict(target, inputs, runtime=runtime)
    return Answer({"predictions": answers}, "\n".join(map(_line, answers)))


def _line(answer: dict[str, Any]) -> str:
    """Return one answer in one line; probabilities from the highest, at most five."""
    if "values" in answer:
        said = ", ".join(f"{name} = {value:.6g}" for name, value in answer["values"].items())
        return f"{answer['input']}: {said}"
    given = answer["label"] if "label" in answer else ", ".join(answer["labels"]) or "(none)"
    ranked = sorted(answer["probabilities"].items(), key=lambda item: -item[1])[:5]
    return f"{answer['input']}: {given}  ({', '.join(f'{name} {p:.1%}' for name, p in ranked)})"
