"""What README.md and CONTRIBUTING.md show is run as it stands there."""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from fmdist import component, storage
from fmdist.cli.main import VERBS
from tests.integration.command_line import succeed

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line for block in blocks(README, "console") for line in block.splitlines()]
    return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A new folder with the shipped recipes, as in a clone."""
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    return tmp_path


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_and_the_python_of_the_readme_run(folder: Path) -> None:
    assert len(commands()) >= 5
    for command in commands():
        program, *words = shlex.split(command)
        assert program == "fmdist"
        succeed(folder, *words)
    storage.verify(folder / "artifacts/digits")

    python = blocks(README, "python")
    assert python
    names: dict[str, Any] = {}
    with contextlib.chdir(folder):
        for block in python:
            exec(compile(block, "README.md", "exec"), names)
    assert names["trained"].metrics["accuracy"] > 0.8
    assert names["scores"]["metrics"]["accuracy"] > 0.8
    assert (folder / "runs/api/report.html").is_file()


def test_the_recipe_of_the_readme_is_valid(tmp_path: Path) -> None:
    recipes = blocks(README, "yaml")
    assert recipes
    for recipe in recipes:
        (tmp_path / "recipe.yaml").write_text(recipe)
        succeed(tmp_path, "validate", "recipe.yaml")


@pytest.mark.slow
def test_the_family_of_the_contributing_guide_trains(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(component, "_plugin_folders", [])
    (source,) = blocks(CONTRIBUTING, "python")
    named = re.search(r"`kind: (\w+)` in a recipe \*\*is\*\* the module", CONTRIBUTING)
    assert named is not None
    kind = named[1]
    (folder / "mine/models").mkdir(parents=True)
    (folder / f"mine/models/{kind}.py").write_text(source)
    listed = succeed(folder, "list", "models", "--plugins", "mine", "--json").json
    (ours,) = [row for row in listed if row["kind"] == kind]
    assert source.startswith(f'"""{ours["summary"]}"""')
    recipe = ("recipes/digits.yaml", f"model={{kind: {kind}}}", "train.epochs=8", "-o", f"runs/{kind}")
    done = succeed(folder, "train", *recipe, "--plugins", "mine", "--json")
    assert done.json["metrics"]["accuracy"] > done.json["baseline"]["accuracy"]
    compressed = ("compress", f"runs/{kind}", "--quantize", "int8", "--max-drop", "1", "--plugins", "mine")
    succeed(folder, *compressed)
    models = storage.verify(folder / f"artifacts/{kind}")["models"]
    assert all("int8" in models[runtime] for runtime in ("openvino", "onnxruntime"))


def test_the_make_targets_that_are_named_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^(\w+):", makefile, re.MULTILINE))
    for text in (README, CONTRIBUTING):
        named = set(re.findall(r"(?:^|`)make (\w+)", text, re.MULTILINE))
        assert named
        assert named <= targets


def test_the_command_table_lists_the_verbs() -> None:
    table = README[README.index("| command | does |") :].split("\n\n")[0].splitlines()[2:]
    cells = [line.split("|")[1] for line in table]
    named = [
        quoted.removeprefix("fmdist ").split()[0] for cell in cells for quoted in re.findall("`(.+?)`", cell)
    ]
    assert sorted(named) == sorted(str(verb.name) for verb in VERBS)


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_the_places_that_are_named_exist(text: str) -> None:
    places = {place for place in re.findall(r"`((?:fmdist|recipes|benchmarks)/[\w/]+(?:\.\w+)?)`", text)}
    assert places
    example = "fmdist/models/bottleneck.py"
    assert [place for place in sorted(places - {example}) if not (ROOT / place).exists()] == []
