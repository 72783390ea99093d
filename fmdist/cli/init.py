"""``fmdist init``: a commented recipe to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fmdist.cli.frame import Answer

Target = Annotated[Path, typer.Argument(metavar="[FILE]", help="The recipe to write; never overwritten.")]
Model = Annotated[str, typer.Option(metavar="KIND", help="See `fmdist list models`.")]
Task = Annotated[str, typer.Option(metavar="KIND", help="See `fmdist list tasks`.")]
Data = Annotated[str, typer.Option(metavar="KIND", help="See `fmdist list data`.")]


def init(
    file: Target = Path("recipe.yaml"),
    model: Model = "cnn",
    task: Task = "classification",
    data: Data = "digits",
) -> Answer:
    """Write a commented recipe with every field, its default and what it means."""
    from fmdist import component, stages, storage
    from fmdist.errors import UsageError
    from fmdist.recipe import editor, parsing, reader

    if file.exists():
        raise UsageError(
            field=str(file), problem="the file exists and is never overwritten", fix="name another file"
        )
    if not file.parent.is_dir():
        raise UsageError(field=str(file.parent), problem="no such directory")
    chosen: dict[str, object] = {"name": file.stem}
    for group, name, section in (("models", model, "model"), ("tasks", task, "task"), ("data", data, "data")):
        component.load(component.find(group, name))
        chosen[section] = {"kind": name}
    text = editor.commented(stages.SECTIONS, chosen)
    parsing.parse(reader.read_text(text, str(file)).values, stages.SECTIONS)
    storage.write_text(file, text)
    return Answer({"written": str(file)}, f"wrote {file}; check it with: fmdist validate {file}")
