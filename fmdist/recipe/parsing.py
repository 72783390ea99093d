"""From a recipe as written to validated sections, with all mistakes collected."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json

from fmdist.errors import DependencyMissing, RecipeError
from fmdist.recipe import overrides, reader
from fmdist.recipe.problems import Found, explain, nearest, not_finite
from fmdist.recipe.reader import Keys
from fmdist.recipe.schema import SectionSpec, recipe_model


def load(path: Path, changes: Sequence[str], sections: Mapping[str, SectionSpec]) -> dict[str, Any]:
    """Read a recipe file with what it extends, apply overrides and return the sections as `parse` does.

    Raises:
        UsageError: if there is no such file.
        RecipeError: all the mistakes of the YAML, else of the overrides, else of the values.
        DependencyMissing: if all that is wrong is that extras are not installed.
    """
    raw = overrides.apply(reader.read(path), changes)
    return parse(raw.values, sections, raw.lines)


def parse(
    values: Mapping[str, Any], sections: Mapping[str, SectionSpec], lines: Mapping[Keys, str] | None = None
) -> dict[str, Any]:
    """Validate a recipe and return every section by name: a `Section`, a ``Config``, a scalar or None.

    Numbers are not read from strings and true is not a number; lists are accepted where tuples are meant
    and strings where paths are. A section that is written without content means its default.

    Args:
        values: the recipe as plain values, from `reader.read` and `overrides.apply`; from Python, paths and
            tuples may be among them.
        sections: what a recipe may hold, by top-level key.
        lines: where each value was written, for messages.

    Raises:
        RecipeError: every mistake, each with its path, line, value, what is allowed and the fix.
        DependencyMissing: if all that is wrong is that extras are not installed.
    """
    lines = lines or {}
    full = dict(values)
    for name, spec in sections.items():
        if full.get(name) is None and not spec.required:
            full[name] = spec.default
    model = recipe_model(sections)
    # Refused everywhere, since a field that takes any value would let them through.
    found = {keys: Found(keys, not_finite(keys, full, lines)) for keys in _not_finite(full, ())}
    try:
        recipe = model.model_validate_json(to_json(full, inf_nan_mode="constants", fallback=repr))
    except ValidationError as error:
        mistakes = list(found.values())
        mistakes += [one for one in explain(error, model, full, lines) if one.keys not in found]
        _refuse(mistakes, lines)
    if found:
        _refuse(list(found.values()), lines)
    return {name: getattr(recipe, name) for name in sections}


def _refuse(mistakes: list[Found], lines: Mapping[Keys, str]) -> None:
    written = {keys: position for position, keys in enumerate(lines)}
    mistakes.sort(key=lambda one: written.get(nearest(one.keys, lines), -1))
    problems = tuple(one.problem for one in mistakes)
    if all(one.missing for one in mistakes):
        error = DependencyMissing(problem="\n".join(map(str, problems)))
        error.problems = problems
        raise error
    raise RecipeError.collect(problems)


def _not_finite(value: Any, keys: Keys) -> Iterator[Keys]:
    if isinstance(value, float) and not math.isfinite(value):
        yield keys
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _not_finite(inner, (*keys, key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _not_finite(inner, (*keys, index))
