"""``fmdist init``: a commented recipe to start from."""

from __future__ import annotations

from pathlib import Path

import click

from fmdist.cli.frame import Answer, FilePath, verb


@verb()
@click.argument("file", type=FilePath, default=Path("recipe.yaml"))
@click.option("--model", default="cnn", show_default=True, metavar="KIND", help="See `fmdist list models`.")
@click.option(
    "--task", default="classification", show_default=True, metavar="KIND", help="See `fmdist list tasks`."
)
@click.option("--data", default="digits", show_default=True, metavar="KIND", help="See `fmdist list data`.")
def init(file: Path, model: str, task: str, data: str) -> Answer:
    """Write a commented recipe (recipe.yaml) to start from.

    It holds every field with its default and what it means. A file is never overwritten.
    """
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
    text = editor.commented(stages.sections(), chosen)
    parsing.parse(reader.read_text(text, str(file)).values, stages.sections())
    storage.write_text(file, text)
    return Answer({"written": str(file)}, f"wrote {file}; check it with: fmdist validate {file}")
