"""fmdist: from one recipe file to a model that is trained, compressed and verified.

The verbs are functions here, loaded when first used: ``fmdist.train("recipe.yaml")``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fmdist.data.arrays import Arrays
    from fmdist.stages import (
        Recipe,
        compress,
        evaluate,
        load_recipe,
        open_module,
        predict,
        report,
        run,
        train,
    )

__all__ = [
    "Arrays",
    "Recipe",
    "compress",
    "evaluate",
    "load_recipe",
    "open_module",
    "predict",
    "report",
    "run",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "Arrays":
        return import_module("fmdist.data.arrays").Arrays
    if name in __all__:
        return getattr(import_module("fmdist.stages"), name)
    message = f"module 'fmdist' has no attribute '{name}'"
    raise AttributeError(message)
