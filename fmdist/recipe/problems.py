"""From pydantic's errors to the words that a recipe's author needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from fmdist.errors import UNSET, DependencyMissing, Problem, RecipeError, did_you_mean
from fmdist.recipe.reader import Keys, at, dotted, read_value
from fmdist.recipe.schema import Plugin, PluginError, holder

_SHOULD_BE = "Input should be "
_MAX_NESTING = 6


class Found(NamedTuple):
    """One mistake and, if a plug-in couldn't be loaded because of it, what was raised then."""

    keys: Keys
    problem: Problem
    missing: DependencyMissing | None = None


def explain(
    error: ValidationError, model: type[BaseModel], values: Mapping[str, Any], lines: Mapping[Keys, str]
) -> list[Found]:
    """Return one entry per mistake, in the order of the recipe.

    Args:
        error: from validating ``values`` against ``model``.
        model: the whole recipe's model.
        values: the recipe as plain values.
        lines: where each value was written.
    """
    found: dict[Keys, Found] = {}
    for loc, details in _flatten(error, ()):
        one = _explain_one(_place(loc, values, details["type"]), details, model, values, lines)
        found[one.keys] = _joined(found[one.keys], one) if one.keys in found else one
    return list(found.values())


def not_finite(keys: Keys, values: Mapping[str, Any], lines: Mapping[Keys, str]) -> Problem:
    """Return the problem of a nan or inf."""
    return Problem(
        "nan and inf are not allowed",
        dotted(keys),
        at(values, keys),
        "a finite number",
        line=_line(keys, lines),
    )


def _joined(first: Found, second: Found) -> Found:
    """Return one mistake for two of the same value: a union reports each of its members."""
    left, right = first.problem, second.problem
    problem = left.problem if left.problem == right.problem else "wrong value"
    allowed = " or ".join(dict.fromkeys(text for text in (left.allowed, right.allowed) if text))
    return first._replace(problem=replace(left, problem=problem, allowed=allowed))


def _flatten(error: ValidationError, prefix: Keys) -> Iterator[tuple[Keys, ErrorDetails]]:
    for details in error.errors(include_url=False):
        cause = details.get("ctx", {}).get("error")
        if isinstance(cause, ValidationError):
            yield from _flatten(cause, prefix + details["loc"])
        else:
            yield prefix + details["loc"], details


def _place(loc: Keys, values: Any, error_type: str) -> Keys:
    """Return where in the recipe ``loc`` is: pydantic also names the members of unions there."""
    keys: list[str | int] = []
    for position, part in enumerate(loc):
        inner = at(values, (part,))
        if inner is not UNSET:
            keys.append(part)
            values = inner
        elif position == len(loc) - 1 and error_type == "missing":
            keys.append(part)
    return tuple(keys)


def _explain_one(
    keys: Keys,
    details: ErrorDetails,
    model: type[BaseModel],
    values: Mapping[str, Any],
    lines: Mapping[Keys, str],
) -> Found:
    cause = details.get("ctx", {}).get("error")
    line = _line(keys, lines)
    value = details["input"]
    if isinstance(cause, PluginError):
        found = cause.problem
        keys = (*keys, found.field) if found.field else keys
        missing = cause.cause if isinstance(cause.cause, DependencyMissing) else None
        return Found(keys, replace(found, field=dotted(keys), line=_line(keys, lines)), missing)
    if details["type"] == "extra_forbidden":
        known = list(_fields(model, keys[:-1], values))
        fix = did_you_mean(str(keys[-1]), known) or _elsewhere(str(keys[-1]), model, values)
        return Found(keys, Problem("unknown key", dotted(keys), UNSET, ", ".join(known), fix, line))
    if details["type"] == "missing":
        return Found(keys, Problem("required key is missing", dotted(keys), line=line))
    if cause is not None:
        shown = UNSET if isinstance(value, dict | list) else value
        return Found(keys, Problem(str(cause), dotted(keys), shown, line=line))
    problem, allowed, fix = _words(details)
    return Found(keys, Problem(problem, dotted(keys), value, allowed, fix, line))


def _words(details: ErrorDetails) -> tuple[str, str, str]:
    message, value = details["msg"], details["input"]
    allowed = message.removeprefix(_SHOULD_BE)
    if details["type"] in ("literal_error", "enum"):
        choices = allowed.replace(" or ", ", ").replace("'", "").split(", ")
        return "unknown choice", allowed, did_you_mean(value, choices) if isinstance(value, str) else ""
    if details["type"].endswith(("_type", "_parsing")) or details["type"] == "int_from_float":
        if details["type"] in ("model_type", "dict_type", "model_attributes_type"):
            allowed = "a mapping"
        elif details["type"] in ("tuple_type", "list_type"):
            allowed = "a list"
        allowed = allowed.replace("a valid integer", "an integer").replace("a valid ", "a ")
        return "wrong type", allowed, _quotes(details["type"], value)
    if message.startswith(_SHOULD_BE):
        return "out of range", allowed, ""
    return message[0].lower() + message[1:], "", ""


def _quotes(error_type: str, value: Any) -> str:
    if error_type == "string_type" and isinstance(value, bool | int | float):
        return "put it in quotes"
    if isinstance(value, str) and error_type.startswith(("int_", "float_", "bool_")):
        try:
            unquoted = read_value(value)
        except RecipeError:
            return ""
        if isinstance(unquoted, bool if error_type.startswith("bool_") else int | float):
            return "remove the quotes"
    return ""


def nearest(keys: Keys, lines: Mapping[Keys, str]) -> Keys:
    """Return ``keys``, or the closest mapping around them that was written somewhere."""
    while keys and keys not in lines:
        keys = keys[:-1]
    return keys


def _line(keys: Keys, lines: Mapping[Keys, str]) -> str:
    return lines.get(nearest(keys, lines), "")


def _model(holds: type[BaseModel] | Plugin | None, value: Any) -> type[BaseModel] | None:
    if not isinstance(holds, Plugin):
        return holds
    try:
        return holds.config_class(value)
    except PluginError:
        return None


def _fields(model: type[BaseModel], keys: Keys, values: Any) -> dict[str, Any]:
    """Return the fields that the mapping at ``keys`` may have: name -> what it holds."""
    holds: type[BaseModel] | Plugin | None = model
    for key in keys:
        here = _model(holds, values)
        if here is not None and key in here.model_fields:
            field = here.model_fields[str(key)]
            holds = holder(field.annotation, field.metadata)
        values = at(values, (key,))
    found = _model(holds, values)
    fields = found.model_fields.items() if found else ()
    known: dict[str, Any] = {"kind": None} if isinstance(holds, Plugin) else {}
    return known | {name: holder(field.annotation, field.metadata) for name, field in fields}


def _elsewhere(name: str, model: type[BaseModel], values: Mapping[str, Any]) -> str:
    """Return a hint if the key ``name`` exists in another place of the recipe."""
    places = [keys for keys in _all_keys(model, (), values) if keys[-1] == name]
    return f"did you mean '{dotted(min(places, key=len))}'?" if places else ""


def _all_keys(model: type[BaseModel], keys: Keys, values: Mapping[str, Any]) -> Iterator[Keys]:
    if len(keys) >= _MAX_NESTING:
        return
    for name, holds in _fields(model, keys, values).items():
        if name != "kind":
            yield (*keys, name)
            if holds is not None:
                yield from _all_keys(model, (*keys, name), values)
