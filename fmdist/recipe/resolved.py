"""The resolved recipe: every value spelled out, as plain values, as YAML and as a fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from fmdist.recipe.reader import Resolver
from fmdist.recipe.schema import ComponentConfig


def to_plain(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return what `parse` returned as plain JSON values; absent sections are left out."""
    return {name: _plain(value) for name, value in recipe.items() if value is not None}


def to_yaml(plain: Mapping[str, Any]) -> str:
    """Return plain values as YAML that the strict reader reads back equal."""
    return yaml.dump(dict(plain), Dumper=Dumper, sort_keys=False, allow_unicode=True, width=100)


def fingerprint(plain: Mapping[str, Any]) -> str:
    """Return the SHA-256 of plain values, independent of the order of keys.

    Raises:
        ValueError: for nan or inf, which JSON doesn't have.
    """
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, ComponentConfig):
        return value.to_recipe()
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


class Dumper(Resolver, yaml.SafeDumper):
    """Quotes what the strict reader would not read as a string; short lists stay on one line."""

    def represent_sequence(
        self, tag: str, sequence: Any, flow_style: bool | None = None
    ) -> yaml.SequenceNode:
        """Write a list of scalars as ``[1, 2, 3]``."""
        flow = not any(isinstance(item, dict | list) for item in sequence)
        return super().represent_sequence(tag, sequence, flow_style=flow or flow_style)

    def ignore_aliases(self, data: Any) -> bool:
        """Spell equal values out instead of writing anchors."""
        return True
