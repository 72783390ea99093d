from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest

from fmdist.recipe.editor import commented, json_schema
from fmdist.recipe.parsing import parse
from fmdist.recipe.reader import read_text
from fmdist.recipe.resolved import to_plain
from tests.unit.recipe.toy_sections import SECTIONS, Work, install


@pytest.fixture(autouse=True)
def _toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "text",
    [
        "name: x\ntoy: {kind: ball, radius: 2, colors: [a]}",
        "name: x\ntoy: {kind: cube, edge: 2}\nwork: {lr: 1e-3, more: [{kind: ball}]}\nbonus: {every: 1}",
        "name: x\ntoy: {kind: ghost, whatever: 1}",
        "extends: base.yaml\ntoy: {radius: 2}",
        "extends: base.yaml",
    ],
)
def test_schema_accepts(text: str) -> None:
    jsonschema.validate(read_text(text, "r.yaml").values, json_schema(SECTIONS))


@pytest.mark.parametrize(
    "text",
    [
        "toy: {kind: ball}",
        "name: x",
        "name: x\ntoy: {}",
        "name: x\ntoy: {kind: bal}",
        "name: x\ntoy: {kind: ball, edge: 2}",
        "name: x\ntoy: {kind: ball, radius: 0}",
        "name: x\ntoy: {kind: cube}",
        "name: x\ntoy: {kind: ball}\nwork: {epoch: 3}",
        "name: x\ntoy: {kind: ball}\nwork: {lr: '1'}",
        "name: x\ntoy: {kind: ball}\nwork: {more: [{kind: cube}]}",
        "name: x\ntoy: {kind: ball}\nwork: {more: [{}]}",
        "name: x\ntoy: {kind: ball}\nsed: 3",
        "extends: 3",
        "extends: base.yaml\nwork: {epoch: 3}",
    ],
)
def test_schema_refuses(text: str) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(read_text(text, "r.yaml").values, json_schema(SECTIONS))


def test_schema_is_one_and_documents_the_fields() -> None:
    schema = json_schema(SECTIONS)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert schema["$defs"]["Work"]["properties"]["epochs"]["description"] == "How often."
    assert schema["properties"]["toy"]["properties"]["kind"]["enum"] == ["ball", "cube", "ghost"]
    assert [
        branch["then"]["properties"]["kind"]["const"] for branch in schema["properties"]["toy"]["allOf"]
    ] == [
        "ball",
        "cube",
    ]


@pytest.mark.parametrize("kind", ["ball", "cube"])
def test_commented_recipe_is_valid_and_complete(kind: str) -> None:
    text = commented(SECTIONS, {"toy": {"kind": kind}, "name": "mine"})
    recipe = parse(read_text(text, "r.yaml").values, SECTIONS)
    assert recipe["name"] == "mine"
    assert recipe["toy"].kind() == kind
    assert recipe["work"] == Work()
    for name, field in Work.model_fields.items():
        assert f"{name}:" in text
        assert f"# {field.description}" in text


def test_what_is_commented_out_is_valid_too() -> None:
    text = commented(SECTIONS, {"toy": {"kind": "ball"}})
    live = [line for line in text.splitlines() if not line.startswith("# ") or line == "# bonus:"]
    live = [line.removeprefix("# ") for line in live]
    start = live.index("bonus:")
    assert [line for line in text.splitlines() if line.startswith("#   ")] == [
        "#   # Steps between two.",
        "#   every: 5",
    ]
    values = read_text("\n".join([*live[:start], "bonus:", "  every: 5"]), "r.yaml").values
    assert to_plain(parse(values, SECTIONS))["bonus"] == {"every": 5}
