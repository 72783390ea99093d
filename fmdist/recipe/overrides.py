"""Overrides from the command line: ``train.lr=1e-3 model.kind=mlp data.augment=null``."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

from fmdist.errors import Problem, RecipeError
from fmdist.recipe.reader import Keys, Raw, dotted, read_value

COMMAND_LINE = "command line"

_PATH = re.compile(r"[A-Za-z_][\w-]*(?:\.[\w-]+)*")


def apply(raw: Raw, overrides: Sequence[str]) -> Raw:
    """Return the recipe with each ``path=value`` set; values are read by the rules of the YAML reader.

    A value replaces what stood there, mappings too; nothing after ``=`` is null. Numbers in a path index
    lists (``compress.passes.0.max_drop=0.02``). A new ``kind`` drops the other keys of its mapping, which
    belong to another class; kinds are set first, so the order of overrides matters only for equal paths,
    where the last wins.

    Raises:
        RecipeError: all the malformed overrides.
    """
    problems: list[Problem] = []
    parsed: list[tuple[Keys, Any]] = []
    for text in overrides:
        path, equals, value = text.partition("=")
        if not equals or not _PATH.fullmatch(path):
            allowed = "path=value, for example train.lr=1e-3"
            problems.append(Problem("malformed override", value=text, allowed=allowed, line=COMMAND_LINE))
            continue
        try:
            parsed.append((tuple(path.split(".")), read_value(value)))
        except RecipeError as error:
            problems += [Problem(found.problem, path, value, line=COMMAND_LINE) for found in error.problems]

    values, lines = copy.deepcopy(raw.values), dict(raw.lines)
    for keys, value in sorted(parsed, key=lambda item: item[0][-1] != "kind"):
        problem = _set(values, lines, keys, value)
        if problem:
            problems.append(problem)
    if problems:
        raise RecipeError.collect(problems)
    return Raw(values, lines)


def _set(values: dict[str, Any], lines: dict[Keys, str], words: Keys, value: Any) -> Problem | None:
    holder: Any = values
    keys: Keys = ()
    for word in words[:-1]:
        place = _place(holder, word)
        if place is None:
            return _no_place((*keys, word), holder, words)
        keys = (*keys, place)
        if isinstance(holder, dict) and holder.get(place) is None:
            holder[place] = {}
        holder = holder[place]
        if not isinstance(holder, dict | list):
            return _no_place(keys, holder, words)
        lines.setdefault(keys, COMMAND_LINE)
    last = _place(holder, words[-1])
    if last is None:
        return _no_place(words, holder, words)
    if last == "kind" and holder.get("kind", value) != value:
        holder.clear()
        _forget(lines, keys)
    keys = (*keys, last)
    holder[last] = value
    _forget(lines, keys)
    lines[keys] = COMMAND_LINE
    return None


def _place(holder: dict[str, Any] | list[Any], key: str | int) -> str | int | None:
    """Return the key or index that an override's word means, None if the list is too short."""
    if isinstance(holder, dict):
        return key
    return int(key) if str(key).isdecimal() and int(key) < len(holder) else None


def _no_place(keys: Keys, found: Any, override: Keys) -> Problem:
    allowed = f"a position below {len(found)}" if isinstance(found, list) else "a mapping"
    return Problem(f"can't set {dotted(override)} here", dotted(keys), found, allowed, line=COMMAND_LINE)


def _forget(lines: dict[Keys, str], keys: Keys) -> None:
    for place in [place for place in lines if len(place) > len(keys) and place[: len(keys)] == keys]:
        del lines[place]
