"""The base classes of everything that stands in a recipe."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict


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
