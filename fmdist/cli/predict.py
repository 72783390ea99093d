"""``fmdist predict``: answers for files of the user."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from fmdist.cli.evaluate import with_runtime, with_target
from fmdist.cli.frame import Answer, FilePath, verb
from fmdist.errors import UsageError


@verb()
@with_target
@click.argument("inputs", type=FilePath, nargs=-1, metavar="[INPUT]...")
@with_runtime
@click.option("--text", "texts", multiple=True, metavar="TEXT", help="An input right here; may come often.")
@click.option(
    "--set", "options", multiple=True, metavar="NAME=VALUE", help="How to answer, such as temperature=0.8."
)
def predict(
    target: Path, inputs: tuple[Path, ...], runtime: str, texts: tuple[str, ...], options: tuple[str, ...]
) -> Answer:
    """Answer for images, rows of tables, texts, prompts or users."""
    from fmdist import stages

    given = dict(map(_option, options))
    answers = stages.predict(target, inputs, texts=texts, runtime=runtime, options=given)
    return Answer({"predictions": answers}, "\n".join(map(_line, answers)))


def _option(text: str) -> tuple[str, float | int | str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(field="--set", problem="not NAME=VALUE", value=text, fix="write temperature=0.8")
    for number in (int, float):
        try:
            return name, number(value)
        except ValueError:
            continue
    return name, value


def _line(answer: dict[str, Any]) -> str:
    """Return one answer in one line; probabilities from the highest, at most five.

    What is no number and no text, such as a generated image, is only named.
    """
    if "text" in answer:
        return f"{answer['input']}: {answer['text']}"
    if "items" in answer:
        return f"{answer['input']}: {', '.join(str(item['name']) for item in answer['items'])}"
    if "values" in answer:
        return f"{answer['input']}: {_numbers(answer['values'])}"
    if "probabilities" not in answer:
        return f"{answer['input']}: {_scores(answer)}"
    given = answer["label"] if "label" in answer else ", ".join(answer["labels"]) or "(none)"
    ranked = sorted(answer["probabilities"].items(), key=lambda item: -item[1])[:5]
    return f"{answer['input']}: {given}  ({', '.join(f'{name} {p:.1%}' for name, p in ranked)})"


def _numbers(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} = {value:.6g}" for name, value in values.items())


def _scores(answer: Mapping[str, Any]) -> str:
    """Return an answer's numbers, and where the rest of it is."""
    numbers = _numbers({name: value for name, value in answer.items() if isinstance(value, int | float)})
    rest = ", ".join(f"the {name} is in --json" for name, value in answer.items() if isinstance(value, list))
    return f"{numbers} ({rest})" if numbers and rest else numbers or rest
