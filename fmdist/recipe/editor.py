"""What helps to write a recipe: a JSON schema for editors and a commented recipe to start from.

Both are made from the section classes, so they are never behind the code.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python

from fmdist.errors import UNSET
from fmdist.recipe.resolved import Dumper
from fmdist.recipe.schema import Plugin, SectionSpec, holder, recipe_model

_WIDTH = 100
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PLACEHOLDERS: dict[Any, Any] = {str: "CHANGE-ME", Path: "CHANGE-ME", int: 1, float: 1.0, bool: False}


def json_schema(sections: Mapping[str, SectionSpec]) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a whole recipe; imports every kind whose extras are installed.

    What is required may also come from the recipe that ``extends`` names; then it isn't asked for here.
    """
    schema = recipe_model(sections).model_json_schema()
    alone: dict[str, Any] = {"required": schema.pop("required", []), "properties": {}}
    for name, spec in sections.items():
        if isinstance(spec.holds, Plugin):
            section = schema["properties"][name]
            for plugin in section.get("anyOf", [section]):
                plugin.pop("required", None)
            alone["properties"][name] = {"if": {"type": "object"}, "then": {"required": ["kind"]}}
    described = "another recipe, relative to this one, whose values hold where this one states none"
    schema["properties"] = {"extends": {"type": "string", "description": described}, **schema["properties"]}
    return {"$schema": _DIALECT, **schema, "if": {"required": ["extends"]}, "else": alone}


def commented(sections: Mapping[str, SectionSpec], chosen: Mapping[str, Any]) -> str:
    """Return a recipe with every field, its default and its documentation.

    Sections that are off by default are commented out; a field without a default gets a placeholder.

    Args:
        sections: what a recipe may hold.
        chosen: plain values to use for some sections; ``{"kind": "cnn"}`` for a plug-in.

    Raises:
        PluginError: for an unknown kind or a missing extra among the chosen.
    """
    text: list[str] = []
    for name, spec in sections.items():
        value = chosen.get(name, spec.default)
        lines = list(_section(name, spec, value))
        text += [
            "",
            *_comment(spec.summary or _summary(spec.holds)),
            *(lines if name in chosen or value is not None else _commented_out(lines)),
        ]
    return "\n".join(line.rstrip() for line in text[1:]) + "\n"


def _section(name: str, spec: SectionSpec, value: Any) -> Iterator[str]:
    model: type[BaseModel] | None = None
    if isinstance(spec.holds, Plugin):
        model = spec.holds.config_class(value)
        yield f"{name}:"
        yield from _indented([*_comment(_summary(model)), f"kind: {value['kind']}"])
    elif isinstance(spec.holds, type) and issubclass(spec.holds, BaseModel):
        model = spec.holds
        yield f"{name}:"
    if model is None:
        yield f"{name}: {_scalar(_placeholder(spec.holds) if value is UNSET else value)}"
    else:
        yield from _indented(_fields(model, {} if value in (None, UNSET) else value))


def _fields(model: type[BaseModel], values: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of every field; ``values`` are used where they state one."""
    for name, field in model.model_fields.items():
        yield from _comment(field.description or "")
        value = values.get(name, UNSET)
        if value is UNSET:
            value = _default(field)
        inner = holder(field.annotation, field.metadata)
        one_section = isinstance(inner, type) and get_origin(field.annotation) not in (tuple, list, dict)
        if one_section and isinstance(inner, type):
            lines = [f"{name}:", *_indented(_fields(inner, value or {}))]
            yield from lines if value is not None else _commented_out(lines)
        else:
            yield f"{name}: {_scalar(value)}"


def _default(field: FieldInfo) -> Any:
    if not field.is_required():
        return to_jsonable_python(field.get_default(call_default_factory=True, validated_data={}))
    return field.examples[0] if field.examples else _placeholder(field.annotation)


def _placeholder(annotation: Any) -> Any:
    if get_origin(annotation) is Literal:
        return get_args(annotation)[0]
    if annotation in _PLACEHOLDERS:
        return _PLACEHOLDERS[annotation]
    inner = [_placeholder(argument) for argument in get_args(annotation) if argument is not type(None)]
    return [] if get_origin(annotation) in (tuple, list) else inner[0] if inner else {}


def _summary(holds: Any) -> str:
    """Return the first paragraph of a section class's docstring."""
    is_section = isinstance(holds, type) and issubclass(holds, BaseModel)
    return inspect.cleandoc(holds.__doc__ or "").split("\n\n")[0] if is_section else ""


def _scalar(value: Any) -> str:
    text: str = yaml.dump([value], Dumper=Dumper, default_flow_style=True, width=float("inf"))
    return text.strip()[1:-1]


def _comment(text: str) -> list[str]:
    return [f"# {line}" for line in textwrap.wrap(" ".join(text.split()), _WIDTH)]


def _indented(lines: Iterator[str] | list[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)


def _commented_out(lines: list[str]) -> Iterator[str]:
    return (f"# {line}" for line in lines)
