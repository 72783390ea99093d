"""``fmdist list``: what a recipe's ``kind`` can be."""

from __future__ import annotations

import typer

from fmdist.cli.frame import Answer, Verb

app = typer.Typer(help="List what a recipe's `kind` can be, and what each needs.", rich_markup_mode=None)


@app.command(cls=Verb)
def models() -> Answer:
    """List the model families."""
    return _list("models")


@app.command(cls=Verb)
def tasks() -> Answer:
    """List what can be learned."""
    return _list("tasks")


@app.command(cls=Verb)
def data() -> Answer:
    """List the kinds of data sets."""
    return _list("data")


@app.command(cls=Verb)
def passes() -> Answer:
    """List the compression passes."""
    return _list("passes")


def _list(group: str) -> Answer:
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
