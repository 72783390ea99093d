"""Strict YAML: the few rules that make a recipe mean what it looks like.

Scalars follow the core schema of YAML 1.2: ``1e-3`` is a float, only ``true`` and ``false`` (``True``,
``TRUE``, ...) are booleans, ``yes``, ``no``, ``on`` and ``off`` are strings, so are dates and ``1:30``;
``0o17`` and ``0x1f`` are integers, and ``012``, which YAML 1.1 and 1.2 read differently, is refused. Refused
too: duplicate keys, merge keys (``<<``), tags other than the core ones, several documents. Anchors are
allowed. Mapping keys are strings, as written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import yaml

from fmdist.errors import UNSET, Problem, RecipeError, UsageError, did_you_mean

Keys = tuple[str | int, ...]
"""Where a value stands: ``("train", "optimizer", "lr")``; integers index lists."""

_TAG = "tag:yaml.org,2002:"
_MAX_DEPTH = 32
_MAX_VALUES = 100_000

SCALARS: tuple[tuple[str, re.Pattern[str], list[str]], ...] = (
    ("null", re.compile(r"^(?:~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"^(?:[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")),
    (
        "float",
        re.compile(
            r"^(?:[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)"
            r"|\.(?:nan|NaN|NAN))$"
        ),
        list("-+.0123456789"),
    ),
    ("merge", re.compile(r"^<<$"), ["<"]),
)
"""Tag, pattern and first characters of the plain scalars that are not strings."""


class Resolver:
    """Mixes the scalar rules of this module into a loader or dumper of PyYAML."""

    yaml_implicit_resolvers: ClassVar[dict[str, list[tuple[str, re.Pattern[str]]]]] = {
        first: [(_TAG + tag, pattern) for tag, pattern, starts in SCALARS if first in starts]
        for first in sorted({first for _, _, starts in SCALARS for first in starts})
    }


class _Loader(Resolver, yaml.SafeLoader):
    pass


@dataclass(frozen=True)
class Raw:
    """A recipe as written: plain values, and where each of them was written."""

    values: dict[str, Any]
    lines: dict[Keys, str] = field(default_factory=dict)
    """``recipe.yaml:12`` or ``command line``, for every value by its keys."""


def read(path: Path) -> Raw:
    """Read a recipe file and, if it has ``extends: other.yaml``, the file that it extends.

    Mappings are merged key by key and the recipe's values win; lists and scalars replace. Where both files
    state a ``kind`` and they differ, the base's mapping is dropped whole: its keys belong to another class.
    The extended path is relative to the recipe; an extended file must not extend another.

    Raises:
        UsageError: if there is no such file.
        RecipeError: all the mistakes in its YAML, each with its line.
    """
    raw = _read_one(path)
    if "extends" not in raw.values:
        return raw
    line = raw.lines["extends",]
    name = raw.values.pop("extends")
    if not isinstance(name, str):
        problem = Problem("wrong type", "extends", name, "the path of one recipe", line=line)
        raise RecipeError.collect([problem])
    base_path = path.parent / name
    if not base_path.is_file():
        problem = Problem(
            "no such file",
            "extends",
            str(base_path),
            "a path relative to the recipe",
            _near(base_path),
            line,
        )
        raise RecipeError.collect([problem])
    base = _read_one(base_path)
    if "extends" in base.values:
        problem = Problem(
            "an extended recipe can't extend another",
            "extends",
            base.values["extends"],
            "one level",
            line=line,
        )
        raise RecipeError.collect([problem])
    return _merge(base, raw)


def extended(path: Path) -> str | None:
    """Return what a recipe that `read` takes has written at ``extends``, if it has."""
    name = _read_one(path).values.get("extends")
    return None if name is None else str(name)


def read_text(text: str, name: str) -> Raw:
    """Read a recipe from a string; ``name`` stands for the file in messages.

    Raises:
        RecipeError: all the mistakes in its YAML, each with its line.
    """
    node = _compose(text, name)
    reading = _Reading(name)
    values = {} if node is None else reading.value(node, ())
    if not isinstance(values, dict):
        reading.report("a recipe is a mapping of sections", (), node, allowed="for example 'model:'")
    if reading.problems:
        raise RecipeError.collect(reading.problems)
    return Raw(values, reading.lines)


def read_value(text: str) -> Any:
    """Read one value by the same rules, for an override on the command line.

    Raises:
        RecipeError: if it is not valid YAML.
    """
    node = _compose(text, "command line")
    reading = _Reading("command line")
    value = None if node is None else reading.value(node, ())
    if reading.problems:
        raise RecipeError.collect(reading.problems)
    return value


def _read_one(path: Path) -> Raw:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(field=str(path), problem="no such recipe file", fix=_near(path)) from None
    except IsADirectoryError:
        raise UsageError(field=str(path), problem="a recipe is a YAML file, this is a directory") from None
    except UnicodeDecodeError as error:
        raise UsageError(field=str(path), problem=f"not a text file in UTF-8 ({error.reason})") from None
    return read_text(text, str(path))


def _near(path: Path) -> str:
    """Return a suggestion: the recipe in the folder whose name is closest."""
    return did_you_mean(path.name, (file.name for file in sorted(path.parent.glob("*.y*ml"))))


def _compose(text: str, name: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = " ".join(part for part in (error.context, error.problem) if part)
        fix = "indent with spaces, never with tabs" if "'\\t'" in said else ""
        line = f"{name}:{mark.line + 1}" if mark else name
        raise RecipeError.collect([Problem(f"not valid YAML: {said}", fix=fix, line=line)]) from None
    except yaml.YAMLError as error:
        said = str(error).splitlines()[0]
        raise RecipeError.collect([Problem(f"not valid YAML: {said}", line=name)]) from None
    except RecursionError:
        raise RecipeError.collect([Problem("nested too deeply", line=name)]) from None


class _Reading:
    """Turns nodes into values and collects lines and problems on the way."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lines: dict[Keys, str] = {}
        self.problems: list[Problem] = []

    def line(self, node: yaml.Node) -> str:
        if self.name == "command line":
            return self.name
        return f"{self.name}:{node.start_mark.line + 1}"

    def report(
        self, problem: str, keys: Keys, node: yaml.Node | None, allowed: str = "", fix: str = ""
    ) -> None:
        line = self.line(node) if node else self.name
        self.problems.append(Problem(problem, dotted(keys), allowed=allowed, fix=fix, line=line))

    def value(self, node: yaml.Node, keys: Keys) -> Any:
        # An alias to its own parent never ends, and a few aliases of aliases grow beyond any memory.
        if len(keys) > _MAX_DEPTH or len(self.lines) > _MAX_VALUES:
            raise RecipeError.collect([Problem("nested too deeply or too large", line=self.line(node))])
        self.lines[keys] = self.line(node)
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            return self.mapping(node, keys)
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.value(item, (*keys, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, keys)
        self.report(f"the tag {node.tag.replace(_TAG, '!!')} is not allowed", keys, node)
        return None

    def mapping(self, node: yaml.MappingNode, keys: Keys) -> dict[str, Any]:
        values: dict[str, Any] = {}
        first_lines: dict[str, str] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                self.report("a key must be a plain word", keys, key_node)
                continue
            key = key_node.value
            if key_node.tag == _TAG + "merge":
                fix = "repeat the keys, or extend another recipe"
                self.report("merge keys (<<) are not allowed", keys, key_node, fix=fix)
                continue
            if key in values:
                again = f"duplicate key, first at {first_lines[key]}"
                self.report(again, (*keys, key), key_node, fix="remove one of the two")
                continue
            first_lines[key] = self.line(key_node)
            values[key] = self.value(value_node, (*keys, key))
            self.lines[(*keys, key)] = self.line(key_node)
        return values

    def scalar(self, node: yaml.ScalarNode, keys: Keys) -> Any:
        text: str = node.value
        kind = node.tag.removeprefix(_TAG)
        try:
            return self._typed(kind, text, keys, node)
        except ValueError:
            self.report(f"'{text}' is not {kind}", keys, node)
            return None

    def _typed(self, kind: str, text: str, keys: Keys, node: yaml.ScalarNode) -> Any:
        match kind:
            case "str" | "merge":
                return text
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "float":
                return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
            case "int":
                digits = text.lstrip("+-")
                if len(digits) > 1 and digits[0] == "0" and digits.isdecimal():
                    plain = digits.lstrip("0") or "0"
                    fix = f"write {plain}, or '{text}' in quotes for a string"
                    self.report(
                        f"{text} is octal in one YAML version and decimal in another", keys, node, fix=fix
                    )
                    return None
                return int(text, 0)
        self.report(f"the tag {node.tag.replace(_TAG, '!!')} is not allowed", keys, node)
        return None


def merge_values(base: Any, top: Any) -> Any:
    """Return ``top`` over ``base`` by the rules of `read`."""
    if not (isinstance(base, Mapping) and isinstance(top, Mapping)) or _kinds_differ(base, top):
        return top
    merged = dict(base)
    for key, value in top.items():
        merged[key] = merge_values(base[key], value) if key in base else value
    return merged


def _merge(base: Raw, top: Raw) -> Raw:
    values = merge_values(base.values, top.values)
    lines = {place: line for place, line in base.lines.items() if at(values, place) is not UNSET}
    return Raw(values, lines | top.lines)


def _kinds_differ(base: Mapping[str, Any], top: Mapping[str, Any]) -> bool:
    return "kind" in base and "kind" in top and base["kind"] != top["kind"]


def at(values: Any, keys: Keys, default: Any = UNSET) -> Any:
    """Return the value that stands at ``keys``, or ``default``."""
    for key in keys:
        in_list = isinstance(values, list) and isinstance(key, int) and key < len(values)
        if not in_list and not (isinstance(values, Mapping) and key in values):
            return default
        values = values[key]
    return values


def dotted(keys: Keys) -> str:
    """Return keys as users write them: ``train.optimizer.lr``."""
    return ".".join(str(key) for key in keys)
