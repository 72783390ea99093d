"""``fmdist show``: the resolved recipe."""

from __future__ import annotations

from fmdist.cli.frame import Answer, Overrides, RecipePath


def show(recipe: RecipePath, overrides: Overrides = None) -> Answer:
    """Print a recipe with extensions, overrides and defaults spelled out."""
    from fmdist import stages
    from fmdist.recipe import resolved

    plain = stages.load_recipe(recipe, overrides or []).plain
    return Answer(plain, resolved.to_yaml(plain).rstrip("\n"))
