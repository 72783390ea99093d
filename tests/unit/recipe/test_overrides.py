from __future__ import annotations

from typing import Any

import pytest

from fmdist.errors import RecipeError
from fmdist.recipe.overrides import apply
from fmdist.recipe.reader import read_text

RECIPE = (
    "toy: {kind: ball, radius: 2}\nwork:\n  lr: 1\n  more: [{kind: ball}, {kind: cube, edge: 1}]\nbonus:\n"
)


@pytest.mark.parametrize(
    ("overrides", "section", "value"),
    [
        (["work.lr=1e-3", "work.more=null"], "work", {"lr": 0.001, "more": None}),
        (["work={lr: 3}"], "work", {"lr": 3}),
        (["toy.radius="], "toy", {"kind": "ball", "radius": None}),
        (["toy.radius=3"], "toy", {"kind": "ball", "radius": 3}),
        (["toy.kind=cube"], "toy", {"kind": "cube"}),
        (["toy.edge=2", "toy.kind=cube"], "toy", {"kind": "cube", "edge": 2}),
        (["toy.kind=ball"], "toy", {"kind": "ball", "radius": 2}),
        (["bonus.every=3"], "bonus", {"every": 3}),
        (["new.a.b=[1, x]"], "new", {"a": {"b": [1, "x"]}}),
        (["work.lr=1", "work.lr=2", "work.more=[]"], "work", {"lr": 2, "more": []}),
        (["work.lr=a=b", "work.more=on"], "work", {"lr": "a=b", "more": "on"}),
        (
            ["work.more.1.edge=7"],
            "work",
            {"lr": 1, "more": [{"kind": "ball"}, {"kind": "cube", "edge": 7}]},
        ),
    ],
)
def test_values_are_set(overrides: list[str], section: str, value: Any) -> None:
    assert apply(read_text(RECIPE, "r.yaml"), overrides).values[section] == value


def test_the_recipe_itself_is_left_alone() -> None:
    raw = read_text(RECIPE, "r.yaml")
    apply(raw, ["toy.kind=cube", "work.more.0.radius=3"])
    assert raw == read_text(RECIPE, "r.yaml")


def test_lines_say_command_line() -> None:
    lines = apply(read_text(RECIPE, "r.yaml"), ["toy.kind=cube", "work.more.1.edge=7", "new.a=1"]).lines
    assert lines["toy", "kind"] == lines["work", "more", 1, "edge"] == lines["new",] == "command line"
    assert lines["work", "lr"] == "r.yaml:3"
    assert ("toy", "radius") not in lines


@pytest.mark.parametrize("text", ["work.lr", "=3", ".lr=1", "work.=1", "work..lr=1", "a b=1", "--lr=1", ""])
def test_malformed(text: str) -> None:
    with pytest.raises(RecipeError, match="malformed override"):
        apply(read_text(RECIPE, "r.yaml"), [text])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("work.lr=[1", "not valid YAML"),
        ("work.lr=012", "octal"),
        ("work.lr.deep=1", "can't set work.lr.deep here"),
        ("work.more.2.edge=1", "a position below 2"),
        ("work.more.x=1", "a position below 2"),
    ],
)
def test_what_can_not_be_set(text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as caught:
        apply(read_text(RECIPE, "r.yaml"), [text])
    assert caught.value.problems[0].line == "command line"


def test_all_mistakes_are_collected() -> None:
    with pytest.raises(RecipeError) as caught:
        apply(read_text(RECIPE, "r.yaml"), ["work.lr", "work.lr=[", "work.lr.deep=1", "seed=1"])
    assert len(caught.value.problems) == 3
