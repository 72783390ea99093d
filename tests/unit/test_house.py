"""The house's budgets, on the source itself."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmdist import component

ROOT = Path(__file__).parents[2]
OURS = sorted(path for folder in ("fmdist", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
PACKAGE = [path for path in OURS if (ROOT / "fmdist") in path.parents]
FILES = [*OURS, *sorted((ROOT / "tests").rglob("*.py"))]

MAX_FILE, MAX_FUNCTION, MAX_PARAMETERS = 400, 60, 8
"""Lines, lines, parameters (``self`` and ``cls`` don't count)."""
LONGER = {("fmdist/training/loop.py", "fit"): 120}
"""The one training loop reads as numbered prose, in one function."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def functions(path: Path) -> Iterator[Function]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, Function):
            yield node


def test_the_sources_are_found() -> None:
    assert len(PACKAGE) > 50
    assert all((ROOT / name).is_file() for name, _ in LONGER)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_are_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < MAX_FILE


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_functions_are_short(path: Path) -> None:
    for function in functions(path):
        length = (function.end_lineno or function.lineno) - function.lineno + 1
        assert length <= LONGER.get((name_of(path), function.name), MAX_FUNCTION), function.name


@pytest.mark.parametrize("path", OURS, ids=name_of)
def test_signatures_are_short_and_say_what_they_take(path: Path) -> None:
    for function in functions(path):
        arguments = function.args
        assert arguments.kwarg is None, f"{function.name} takes **{arguments.kwarg and arguments.kwarg.arg}"
        names = [item.arg for item in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
        assert len([name for name in names if name not in ("self", "cls")]) <= MAX_PARAMETERS, function.name


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_is_a_drawer(path: Path) -> None:
    assert path.stem not in ("utils", "util", "helpers", "misc", "common")


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_nothing_prints(path: Path) -> None:
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    assert not [call for call in calls if isinstance(call, ast.Name) and call.id == "print"]


def test_every_plugin_is_held_to_its_independence() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (contract,) = [
        rule for rule in settings["tool"]["importlinter"]["contracts"] if rule["type"] == "independence"
    ]
    kinds = [kind for group in component.GROUPS for kind in component.kinds(group).values()]
    assert set(contract["modules"]) == {kind.module for kind in kinds}


def test_every_slow_test_is_in_a_suite_of_make_test() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    suites = re.findall(r"^SUITES := (.*)$", makefile, re.MULTILINE)[0].split()
    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if "mark.slow" in path.read_text("utf-8")]
    left_out = [
        path for path in marked if not any(ROOT / "tests" / suite in path.parents for suite in suites)
    ]
    assert [name_of(path) for path in left_out if path.name != "test_house.py"] == []
