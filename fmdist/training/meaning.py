"""What the places of an input stand for, so that weights never meet another meaning than they learned."""

from __future__ import annotations

from fmdist.data.id_preprocess import IdPreprocess
from fmdist.data.preprocess import Preprocess, TablePreprocess

Meaning = dict[str, list[str]]
"""Input -> the names of its features, or of its ids from 1 on."""


def meaning_of(preprocess: Preprocess) -> Meaning:
    """Return the names behind a table's features and behind ids; texts have tokenizers instead."""
    if isinstance(preprocess, TablePreprocess):
        features: list[str] = []
        for column in preprocess.columns:
            names = [""] if column.categories is None else [f"={name}" for name in column.categories]
            features += [f"{column.name}{name}" for name in names]
        return {"features": features}
    if isinstance(preprocess, IdPreprocess):
        found: Meaning = {}
        for side in preprocess.sides:
            found[side.name] = list(side.names)
            found |= {f"{side.name}.{item.name}": list(item.categories) for item in side.features}
        return found
    return {}
