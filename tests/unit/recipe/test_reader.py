from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fmdist.errors import RecipeError, UsageError
from fmdist.recipe.reader import read, read_text, read_value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("-.5", -0.5),
        ("3.", 3.0),
        ("3", 3),
        ("+3", 3),
        ("0", 0),
        ("0o17", 15),
        ("0x1f", 31),
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("no", "no"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("null", None),
        ("~", None),
        ("", None),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2024-01-31", "2024-01-31"),
        ("nan", "nan"),
        ("inf", "inf"),
        (".inf", float("inf")),
        ("-.INF", float("-inf")),
        ("'1'", "1"),
        ("[1, a, {b: 2}]", [1, "a", {"b": 2}]),
        ("=", "="),
        ("1e", "1e"),
        ("e3", "e3"),
        ("v1.0", "v1.0"),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: Any) -> None:
    read = read_value(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: 1\nb: 2\na: 3", 3, "duplicate key, first at r.yaml:1"),
        ("a:\n  b: 1\n  c: 2\n  b: 3", 4, "duplicate key, first at r.yaml:2"),
        ("a: 012", 1, "octal"),
        ("a: -012", 1, "octal"),
        ("a: &x {b: 1}\nc:\n  <<: *x", 3, "merge keys"),
        ("a: !!python/name:os.system x", 1, "tag"),
        ("a: !!set {x}", 1, "tag"),
        ("a: !!int x", 1, "'x' is not int"),
        ("a: 1\n\tb: 2", 2, "spaces, never with tabs"),
        ("a: [1, 2", 1, "not valid YAML"),
        ("a: 1\n---\nb: 2", 2, "not valid YAML"),
        ("- 1\n- 2", 1, "mapping of sections"),
        ("just words", 1, "mapping of sections"),
        ("? [a, b]\n: 1", 1, "plain word"),
        ("a: *nothing", 1, "undefined alias"),
    ],
)
def test_refused_with_the_line(text: str, line: int, said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        read_text(text, "r.yaml")
    (problem,) = caught.value.problems
    assert problem.line == f"r.yaml:{line}"
    assert said in str(problem)


def test_all_mistakes_of_a_file_are_collected() -> None:
    with pytest.raises(RecipeError) as caught:
        read_text("a: 012\nb: 1\nb: 2\nc: !foo 3", "r.yaml")
    assert [problem.line for problem in caught.value.problems] == ["r.yaml:1", "r.yaml:3", "r.yaml:4"]


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]",
        "a: " + "[" * 5000 + "]" * 5000,
        "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
        + "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)),
    ],
    ids=["recursive", "deep", "billion laughs"],
)
def test_hostile_files_are_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="nested too deeply"):
        read_text(text, "r.yaml")


def test_anchors_and_lines() -> None:
    raw = read_text("a: &x\n  b: 1\nc: *x\nd:\n- e: 1\n- e: 2\n", "r.yaml")
    assert raw.values == {"a": {"b": 1}, "c": {"b": 1}, "d": [{"e": 1}, {"e": 2}]}
    assert raw.lines["a", "b"] == "r.yaml:2"
    assert raw.lines["c",] == "r.yaml:3"
    assert raw.lines["d", 1, "e"] == "r.yaml:6"


def test_an_empty_file_is_an_empty_recipe() -> None:
    assert read_text("# nothing\n", "r.yaml").values == {}


def test_extends_merges_one_level(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(
        "toy: {kind: ball, radius: 2, colors: [a, b]}\nwork: {lr: 1, epochs: 3}\n"
    )
    recipe = tmp_path / "r.yaml"
    recipe.write_text("extends: base.yaml\ntoy:\n  colors: [c]\nwork: {lr: 2}\n")
    raw = read(recipe)
    assert raw.values == {
        "toy": {"kind": "ball", "radius": 2, "colors": ["c"]},
        "work": {"lr": 2, "epochs": 3},
    }
    assert raw.lines["toy", "radius"] == f"{tmp_path / 'base.yaml'}:1"
    assert raw.lines["toy", "colors"] == f"{recipe}:3"


def test_another_kind_drops_the_keys_of_the_base(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("toy: {kind: ball, radius: 2}\n")
    (tmp_path / "r.yaml").write_text("extends: base.yaml\ntoy: {kind: cube, edge: 1}\n")
    raw = read(tmp_path / "r.yaml")
    assert raw.values == {"toy": {"kind": "cube", "edge": 1}}
    assert ("toy", "radius") not in raw.lines


@pytest.mark.parametrize(
    ("extends", "said"),
    [
        ("missing.yaml", "no such file"),
        ("[base.yaml]", "wrong type"),
        ("middle.yaml", "an extended recipe can't extend another"),
    ],
)
def test_what_can_not_be_extended(tmp_path: Path, extends: str, said: str) -> None:
    (tmp_path / "base.yaml").write_text("a: 1\n")
    (tmp_path / "middle.yaml").write_text("extends: base.yaml\n")
    (tmp_path / "r.yaml").write_text(f"b: 1\nextends: {extends}\n")
    with pytest.raises(RecipeError, match=said) as caught:
        read(tmp_path / "r.yaml")
    assert caught.value.problems[0].line.endswith("r.yaml:2")


def test_a_recipe_that_is_not_there_is_answered_with_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text("a: 1\n")
    with pytest.raises(UsageError, match=r"no such recipe file\. Did you mean 'digits\.yaml'\?"):
        read(tmp_path / "digit.yaml")
    (tmp_path / "r.yaml").write_text("extends: digit.yml\n")
    with pytest.raises(RecipeError, match=r"relative to the recipe\. Did you mean 'digits\.yaml'\?"):
        read(tmp_path / "r.yaml")


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such recipe file"):
        read(tmp_path / "absent.yaml")
    with pytest.raises(UsageError, match="directory"):
        read(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00x")
    with pytest.raises(UsageError, match="UTF-8"):
        read(tmp_path / "binary.yaml")
    (tmp_path / "control.yaml").write_bytes(b"a: \x00")
    with pytest.raises(RecipeError, match="not valid YAML"):
        read(tmp_path / "control.yaml")


def test_a_byte_order_mark_is_no_key(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read(tmp_path / "r.yaml").values == {"a": 1}
