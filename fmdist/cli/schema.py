"""``fmdist schema``: the JSON schema with which editors complete and check recipes."""

from __future__ import annotations

from pathlib import Path

import click

from fmdist.cli.frame import Answer, FilePath, verb


@verb()
@click.option("-o", "--output", type=FilePath, metavar="FILE", help="Write here instead of stdout.")
def schema(output: Path | None) -> Answer:
    """Print the JSON schema with which editors complete recipes.

    Kinds whose extra is not installed are in it by name only.
    """
    import json

    from fmdist import stages, storage
    from fmdist.recipe import editor

    described = editor.json_schema(stages.sections())
    if output is None:
        return Answer(described, json.dumps(described, indent=2))
    storage.write_json(output, described)
    first_line = f"# yaml-language-server: $schema={output}"
    return Answer(
        {"written": str(output)}, f"wrote {output}; a recipe's first line for editors:\n{first_line}"
    )
