"""Every shipped recipe is read, validated and trained for two steps; every kind is in one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.families import SNIPPET, make_data, needs
from fmdist import component, stages, storage
from fmdist.data.plan import BatchPlan
from tests.contract.data_samples import SAMPLES

FOLDER = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(FOLDER.rglob("*.yaml"))
each_recipe = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def plain(path: Path) -> dict[str, Any]:
    return stages.load_recipe(path).plain


def kinds_in(value: Any) -> set[str]:
    """Return every ``kind`` in a recipe, at any depth."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    found = {value["kind"]} if isinstance(value, dict) and isinstance(value.get("kind"), str) else set()
    return found.union(*map(kinds_in, inner))


def data_for(recipe: dict[str, Any], path: Path, folder: Path) -> dict[str, Any]:
    """Return what points a recipe at a sample of its data; a header's snippet makes the real data."""
    text = path.read_text(encoding="utf-8")
    if SNIPPET.search(text):
        make_data(text, folder)
        return {}
    sample = SAMPLES[recipe["data"]["kind"]](folder / "sample")
    changes = {key: value for key, value in sample.items() if key == "root"}
    if "download" in recipe["data"]:
        changes["download"] = False
    if "image_size" in recipe["data"]:
        changes["image_size"] = 32
    return changes


def test_all_recipes_are_found() -> None:
    assert len(RECIPES) == 49


@each_recipe
def test_recipe_is_valid_and_named_after_its_file(path: Path) -> None:
    assert plain(path)["name"] == path.stem


@each_recipe
def test_header_states_command_time_and_metric(path: Path) -> None:
    header = path.read_text(encoding="utf-8").partition("\nname:")[0].splitlines()
    assert all(line.startswith("#") for line in header)
    stated = {words[1]: words[2:] for line in header if len(words := line.split()) > 2}
    assert stated["command"][:3] == ["fmdist", "run", f"recipes/{path.relative_to(FOLDER)}"]
    assert {"time", "expected"} <= set(stated)


@pytest.mark.parametrize("group", component.GROUPS)
def test_every_kind_is_in_a_recipe(group: str) -> None:
    shown = set().union(*(kinds_in(yaml.safe_load(path.read_text())) for path in RECIPES))
    assert not set(component.kinds(group)) - shown


def two_steps(path: Path, folder: Path) -> stages.Trained:
    """Train a recipe for two steps into ``folder/runs``, after those whose runs it builds upon."""
    for name in needs(path.read_text(encoding="utf-8")):
        if not (folder / "runs" / name).exists():
            two_steps(path.with_name(f"{name}.yaml"), folder)
    recipe = plain(path)
    (folder / "sample").mkdir(exist_ok=True)
    sample = data_for(recipe, path, folder)
    recipe["data"] |= sample
    if recipe.get("scaling"):  # workers of their own would not see that an epoch has two steps
        recipe["scaling"] |= {"workers": 1, "strategy": "ddp"}
    recipe["train"] |= {"epochs": 1, "workers": 0} | ({"batch_size": 8} if sample else {})
    return stages.train(recipe, output=folder / "runs" / path.stem)


@pytest.mark.slow
@each_recipe
def test_recipe_trains(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(BatchPlan, "steps_per_epoch", 2)
    trained = two_steps(path, tmp_path)
    record = storage.read_json(tmp_path / "runs" / path.stem / "run.json")
    assert record["status"] == "finished"
    assert record["step"] == 2
    assert trained.primary in trained.metrics
    assert set(trained.metrics) == set(trained.baseline)
