"""The base classes of everything that stands in a recipe."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, create_model
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from fmdist import component
from fmdist.errors import UNSET, DependencyMissing, FmdistError, Problem


class Section(BaseModel):
    """A mapping in a recipe: frozen, no unknown keys, no coercion between types, no nan or inf.

    A string under a field is its documentation; `fmdist schema` and `fmdist init` print it.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ComponentConfig(Section):
    """The base of a plug-in's ``Config``; its ``kind`` is the name of the module that defines it."""

    @classmethod
    def kind(cls) -> str:
        """Return the name by which recipes call this component."""
        return cls.__module__.rpartition(".")[2]

    def to_recipe(self) -> dict[str, Any]:
        """Return the plain values that stand in a resolved recipe, ``kind`` first."""
        return {"kind": self.kind(), **self.model_dump(mode="json")}


class PluginError(ValueError):
    """A plug-in that can't be loaded; pydantic collects it with a recipe's other mistakes."""

    def __init__(self, problem: Problem, cause: FmdistError | None = None) -> None:
        super().__init__(str(problem))
        self.problem = problem
        """Its `field` is relative to the plug-in's mapping."""
        self.cause = cause


@dataclass(frozen=True)
class Plugin:
    """Marks a field that holds a plug-in, at any depth: ``data: Annotated[DataConfig, Plugin("data")]``.

    The mapping's ``kind`` chooses the ``Config`` class; the other keys are that class's fields.
    """

    group: str

    def load(self, value: Any) -> Any:
        """Return the ``Config`` that ``value`` describes; a ready one is returned as it is.

        Raises:
            PluginError: for a missing or unknown kind, or a missing extra.
            ValidationError: for mistakes in the kind's own fields.
        """
        if isinstance(value, ComponentConfig):
            return value
        kind_class = self.config_class(value)
        return kind_class.model_validate_json(json.dumps({k: v for k, v in value.items() if k != "kind"}))

    def config_class(self, value: Any) -> type[ComponentConfig]:
        """Return the ``Config`` class that the ``kind`` of a mapping names.

        Raises:
            PluginError: for a missing or unknown kind, or a missing extra.
        """
        known = ", ".join(component.kinds(self.group))
        if not isinstance(value, Mapping):
            raise PluginError(
                Problem("wrong type", value=value, allowed="a mapping", fix=f"give it a kind, one of {known}")
            )
        kind = value.get("kind", UNSET)
        if not isinstance(kind, str):
            problem = "required key is missing" if kind is UNSET else "wrong type"
            raise PluginError(Problem(problem, field="kind", value=kind, allowed=known))
        try:
            config: type[ComponentConfig] = component.load(component.find(self.group, kind))
        except DependencyMissing as error:
            missing = error.problems[0]
            raise PluginError(Problem(missing.problem, field="kind", fix=missing.fix), error) from error
        except FmdistError as error:
            found = error.problems[0]
            raise PluginError(
                Problem(found.problem, "kind", kind, found.allowed, found.fix), error
            ) from error
        return config

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.load,
            serialization=core_schema.plain_serializer_function_ser_schema(lambda config: config.to_recipe()),
        )

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Return an object schema with one ``if kind then fields`` per kind.

        A kind whose extra is missing is known by name only: its fields can't be read without importing it.
        """
        branches = []
        kinds = component.kinds(self.group)
        for kind in kinds.values():
            if any(component.missing(extra) for extra in kind.requires):
                continue
            fields = dict(handler.resolve_ref_schema(handler(component.load(kind).__pydantic_core_schema__)))
            name = {"const": kind.name, "description": kind.summary}
            fields["properties"] = {"kind": name, **fields.get("properties", {})}
            fields["required"] = ["kind", *fields.get("required", [])]
            chosen = {"properties": {"kind": {"const": kind.name}}, "required": ["kind"]}
            branches.append({"if": chosen, "then": fields})
        kind_names = {"enum": list(kinds), "description": f"which of the {self.group}"}
        return {
            "type": "object",
            "properties": {"kind": kind_names},
            "required": ["kind"],
            "allOf": branches,
        }


@dataclass(frozen=True)
class SectionSpec:
    """One top-level key of a recipe.

    Args:
        holds: a `Plugin`, a `Section` class, or a scalar type such as ``Annotated[int, Field(ge=0)]``.
        default: what a recipe without the key means, as plain values; None leaves it out; unset requires it.
        summary: one line for the JSON schema and `fmdist init`.
    """

    holds: Any
    default: Any = UNSET
    summary: str = ""

    @property
    def required(self) -> bool:
        """Whether a recipe must state this key."""
        return self.default is UNSET


def recipe_model(sections: Mapping[str, SectionSpec]) -> type[BaseModel]:
    """Return one model whose fields are the sections."""
    fields: dict[str, Any] = {}
    for name, spec in sections.items():
        holds = Annotated[Any, spec.holds] if isinstance(spec.holds, Plugin) else spec.holds
        summary = spec.summary or None
        if spec.required:
            fields[name] = (holds, Field(description=summary))
        elif spec.default is None:
            fields[name] = (holds | None, Field(default=None, description=summary))
        else:
            fields[name] = (holds, Field(default=spec.default, description=summary))
    model: type[BaseModel] = create_model("Recipe", __base__=Section, **fields)
    return model


def holder(annotation: Any, metadata: tuple[Any, ...] | list[Any] = ()) -> type[BaseModel] | Plugin | None:
    """Return the section class or plug-in that a field holds, alone, optional, or in a list or mapping."""
    for mark in metadata:
        if isinstance(mark, Plugin):
            return mark
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = get_args(annotation)
    if get_origin(annotation) is Annotated:
        return holder(inner[0], inner[1:])
    return next((found for found in map(holder, inner) if found is not None), None)
