from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fmdist.errors import DependencyMissing, Problem, RecipeError
from fmdist.recipe.overrides import apply
from fmdist.recipe.parsing import load, parse
from fmdist.recipe.reader import read_text
from tests.unit.recipe.toy_sections import SECTIONS, Inner, Work, install

GOOD = "name: x\ntoy: {kind: ball}\n"


@pytest.fixture(autouse=True)
def _toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch)


def _parse(text: str, *overrides: str) -> dict[str, Any]:
    raw = apply(read_text(text, "r.yaml"), overrides)
    return parse(raw.values, SECTIONS, raw.lines)


def _problems(text: str, *overrides: str) -> list[Problem]:
    with pytest.raises(RecipeError) as caught:
        _parse(text, *overrides)
    return list(caught.value.problems)


def test_defaults() -> None:
    recipe = _parse(GOOD)
    assert list(recipe) == list(SECTIONS)
    assert recipe["toy"].radius == 1.0
    assert recipe["work"] == Work()
    assert recipe["seed"] == 0
    assert recipe["bonus"] is None


def test_values_arrive_with_their_types() -> None:
    recipe = _parse(
        "name: x\nseed: 3\ntoy: {kind: cube, edge: 2, label: a/b.txt}\nbonus: {every: 2}\n"
        "work: {lr: 1e-3, rate: 3, more: [{kind: ball, radius: 2, colors: [a]}, {kind: cube, edge: 1}]}\n"
    )
    assert recipe["toy"].label == Path("a/b.txt")
    assert recipe["bonus"] == Inner(every=2)
    assert recipe["work"].lr == 0.001
    assert [toy.kind() for toy in recipe["work"].more] == ["ball", "cube"]
    assert recipe["work"].more[0].colors == ("a",)


def test_an_empty_section_means_its_default() -> None:
    assert _parse(f"{GOOD}work:\nbonus:\n")["work"] == Work()


@pytest.mark.parametrize(
    ("line", "field", "said"),
    [
        ("work: {epoch: 3}", "work.epoch", "unknown key; allowed: epochs, .* 'epochs'"),
        ("lr: 3", "lr", "Did you mean 'work.lr'"),
        ("work: {radius: 3}", "work.radius", "Did you mean 'toy.radius'"),
        ("work: {xyzzy: 3}", "work.xyzzy", "unknown key"),
        ("work: {inner: {evry: 3}}", "work.inner.evry", "Did you mean 'every'"),
        ("work: {extra: {evry: 3}}", "work.extra.evry", "Did you mean 'every'"),
        ("work: {epochs: '3'}", "work.epochs", "wrong type, got '3'; allowed: an integer. Remove the quotes"),
        ("work: {epochs: 3.5}", "work.epochs", "wrong type"),
        ("work: {epochs: 3.0}", "work.epochs", "wrong type"),
        ("work: {epochs: true}", "work.epochs", "wrong type, got True"),
        ("work: {epochs: null}", "work.epochs", "wrong type, got None"),
        ("work: {epochs: 0}", "work.epochs", "out of range, got 0; allowed: greater than or equal to 1"),
        ("work: {lr: true}", "work.lr", "wrong type, got True; allowed: a number"),
        ("work: {lr: '1e-3'}", "work.lr", "Remove the quotes"),
        ("work: {lr: .nan}", "work.lr", "nan and inf are not allowed"),
        ("work: {lr: -.inf}", "work.lr", "nan and inf are not allowed"),
        ("work: {lr: nan}", "work.lr", "wrong type, got 'nan'; allowed: a number"),
        ("work: {lr: inf}", "work.lr", "wrong type, got 'inf'; allowed: a number"),
        ("work: {options: {deep: [1, .inf]}}", "work.options.deep.1", "nan and inf"),
        ("work: {verbose: yes}", "work.verbose", "wrong type, got 'yes'"),
        ("work: {verbose: 1}", "work.verbose", "wrong type"),
        ("work: {mode: fats}", "work.mode", "unknown choice, got 'fats'.*Did you mean 'fast'"),
        ("work: {rate: []}", "work.rate", "allowed: a number or 'auto'"),
        ("work: {inner: 3}", "work.inner", "allowed: a mapping"),
        ("work: {more: 3}", "work.more", "allowed: a list"),
        ("work: {more: [{kind: bal}]}", "work.more.0.kind", "unknown kind, got 'bal'.*Did you mean 'ball'"),
        ("work: {more: [{radius: 1}]}", "work.more.0.kind", "required key is missing"),
        ("work: {more: [{kind: ball}, 3]}", "work.more.1", "wrong type, got 3; allowed: a mapping"),
        ("work: {more: [{kind: ball, radius: 0}]}", "work.more.0.radius", "out of range"),
        ("work: {more: [{kind: cube, egde: 0}]}", "work.more.0.edge", "required key is missing"),
        ("work: {mode: slow, epochs: 101}", "work", "^[^V]*: slow work takes at most 100 epochs$"),
        ("work: 3", "work", "allowed: a mapping"),
        ("seed: -1", "seed", "out of range"),
        ("bonus: {every: 0}", "bonus.every", "out of range"),
    ],
)
def test_each_mistake_names_field_line_and_fix(line: str, field: str, said: str) -> None:
    problem = _problems(GOOD + line)[0]
    assert problem.field == field
    assert problem.line == "r.yaml:3"
    assert re.search(said, str(problem)), str(problem)


@pytest.mark.parametrize(
    ("text", "field", "said"),
    [
        ("toy: {kind: ball}", "name", "required key is missing"),
        ("name: x", "toy", "required key is missing"),
        ("name: x\ntoy: {radius: 1}", "toy.kind", "required key is missing; allowed: ball, cube, ghost"),
        ("name: x\ntoy: {kind: qube}", "toy.kind", "Did you mean 'cube'"),
        ("name: x\ntoy: {kind: 3}", "toy.kind", "wrong type, got 3"),
        ("name: x\ntoy: ball", "toy", "wrong type, got 'ball'; allowed: a mapping. Give it a kind"),
        (
            "name: x\ntoy: {kind: ball, radios: 1}",
            "toy.radios",
            "allowed: kind, radius, colors. Did you mean",
        ),
        ("name: 3\ntoy: {kind: ball}", "name", "Put it in quotes"),
    ],
)
def test_required_and_plug_in_mistakes(text: str, field: str, said: str) -> None:
    (problem,) = _problems(text)
    assert problem.field == field
    assert said in str(problem)


def test_many_mistakes_at_once_in_the_order_of_the_file() -> None:
    problems = _problems(
        "nam: x\ntoy: {kind: bal}\nwork:\n  epochs: '3'\n  lr: .nan\n  inner: {evry: 1}\n", "seed=true"
    )
    assert [(problem.field, problem.line) for problem in problems] == [
        ("name", "r.yaml:1"),
        ("nam", "r.yaml:1"),
        ("toy.kind", "r.yaml:2"),
        ("work.epochs", "r.yaml:4"),
        ("work.lr", "r.yaml:5"),
        ("work.inner.evry", "r.yaml:6"),
        ("seed", "command line"),
    ]


def test_a_missing_extra_alone_is_a_missing_dependency() -> None:
    with pytest.raises(DependencyMissing, match=r"ip install 'fmdist\[no_such_distribution\]'") as caught:
        _parse("name: x\ntoy: {kind: ghost}")
    assert caught.value.problems[0].field == "toy.kind"


def test_a_missing_extra_among_others_is_listed_with_them() -> None:
    fields = [problem.field for problem in _problems("toy: {kind: ghost}\nname: 3\n")]
    assert fields == ["toy.kind", "name"]


def test_load_reads_extends_and_applies_overrides(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(GOOD)
    (tmp_path / "r.yaml").write_text("extends: base.yaml\nseed: 3\n")
    recipe = load(tmp_path / "r.yaml", ["toy.radius=4"], SECTIONS)
    assert (recipe["seed"], recipe["toy"].radius) == (3, 4.0)


def test_paths_and_tuples_may_come_from_python() -> None:
    toy = {"kind": "cube", "edge": 1, "label": Path("a")}
    recipe = parse({"name": "x", "toy": toy, "work": {"more": ({"kind": "ball"},)}}, SECTIONS)
    assert recipe["toy"].label == Path("a")
    with pytest.raises(RecipeError, match=r"work\.lr: wrong type"):
        parse({"name": "x", "toy": toy, "work": {"lr": object()}}, SECTIONS)
