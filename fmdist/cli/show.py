"""``fmdist show``: the resolved recipe."""

from __future__ import annotations

from fmdist.cli.frame import Answer, Overrides, RecipePath


def show(recipe: RecipePath, overrides: Overrides = None) -> Answer:
    """Print a recipe with everything spelled out: extended recipes, overrides and defaults."""
    from fmdist import stages
    from fmdist.recipe import parsing, resolved

    plain = resolved.to_plain(parsing.load(recipe, overrides or [], stages.SECTIONS))
    return Answer(plain, resolved.to_yaml(plain).rstrip("\n"))
