"""``fmdist show``: the resolved recipe."""

from __future__ import annotations

from pathlib import Path

from fmdist.cli.frame import Answer, verb, with_recipe


@verb()
@with_recipe
def show(recipe: Path, overrides: tuple[str, ...]) -> Answer:
    """Print a recipe with extensions, overrides and defaults spelled out."""
    from fmdist import stages
    from fmdist.recipe import resolved

    plain = stages.load_recipe(recipe, overrides).plain
    return Answer(plain, resolved.to_yaml(plain).rstrip("\n"))
