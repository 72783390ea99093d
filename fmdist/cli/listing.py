"""``fmdist list``: what a recipe's ``kind`` can be."""

from __future__ import annotations

import click

from fmdist.cli.frame import Answer, verb

GROUPS = ("models", "tasks", "data", "passes")
"""The groups of `fmdist.component`, which ``--help`` must not import."""


@verb("list")
@click.argument("group", type=click.Choice(GROUPS))
def list_kinds(group: str) -> Answer:
    """List what a recipe's `kind` can be, and what each needs."""
    from fmdist import component, console

    rows, data = [], []
    for kind in component.kinds(group).values():
        missing = [extra for extra in kind.requires if component.missing(extra)]
        needs = [f"{extra} (missing)" if extra in missing else extra for extra in kind.requires]
        rows.append([kind.name, ", ".join(needs), kind.summary])
        data.append({"kind": kind.name, "needs": kind.requires, "missing": missing, "summary": kind.summary})
    text = console.table("", ["kind", "needs", "summary"], rows)
    absent = sorted({extra for kind in data for extra in kind["missing"]})
    if absent:
        text += f"\n\nmissing extras: pip install 'fmdist[{','.join(absent)}]'"
    return Answer(data, text)
