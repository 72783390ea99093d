"""``fmdist validate``: check a recipe."""

from __future__ import annotations

from fmdist.cli.frame import Answer, Overrides, RecipePath


def validate(recipe: RecipePath, overrides: Overrides = None) -> Answer:
    """Check a recipe and list all its mistakes at once."""
    from fmdist import stages

    stages.load_recipe(recipe, overrides or [])
    return Answer({"recipe": str(recipe), "valid": True}, f"{recipe} is valid")
