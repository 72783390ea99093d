"""``fmdist list``: what a recipe's ``kind`` can be."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from fmdist.cli.frame import Answer


class Group(StrEnum):
    """What can be listed; the groups of `fmdist.component`."""

    models = "models"
    tasks = "tasks"
    data = "data"
    passes = "passes"


def list_kinds(
    group: Annotated[Group, typer.Argument(help="What to list.", show_default=False)],
) -> Answer:
    """List the kinds of models, tasks, data or compression passes, and what each needs."""
    from fmdist import component, console

    rows, data = [], []
    for kind in component.kinds(group.value).values():
        missing = [extra for extra in kind.requires if component.missing(extra)]
        needs = [f"{extra} (missing)" if extra in missing else extra for extra in kind.requires]
        rows.append([kind.name, ", ".join(needs), kind.summary])
        data.append({"kind": kind.name, "needs": kind.requires, "missing": missing, "summary": kind.summary})
    text = console.table("", ["kind", "needs", "summary"], rows)
    absent = sorted({extra for kind in data for extra in kind["missing"]})
    if absent:
        text += f"\n\nmissing extras: pip install 'fmdist[{','.join(absent)}]'"
    return Answer(data, text)
