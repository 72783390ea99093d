"""``fmdist validate``: check a recipe."""

from __future__ import annotations

from pathlib import Path

from fmdist.cli.frame import Answer, verb, with_recipe


@verb()
@with_recipe
def validate(recipe: Path, overrides: tuple[str, ...]) -> Answer:
    """Check a recipe and list all its mistakes at once."""
    from fmdist import stages

    stages.load_recipe(recipe, overrides)
    return Answer({"recipe": str(recipe), "valid": True}, f"{recipe} is valid")
