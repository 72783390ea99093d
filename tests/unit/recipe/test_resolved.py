from __future__ import annotations

from pathlib import Path

import pytest

from fmdist.recipe.parsing import parse
from fmdist.recipe.reader import read_text
from fmdist.recipe.resolved import fingerprint, to_plain, to_yaml
from tests.unit.recipe.toy_sections import SECTIONS, install


def test_reads_back_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch)
    text = (
        "name: '012'\ntoy: {kind: cube, edge: 2, label: x}\n"
        "work: {lr: 1e-7, more: [{kind: ball, colors: ['1e-3', 'yes', 'null', '0o17', ü]}]}\n"
    )
    recipe = parse(read_text(text, "r.yaml").values, SECTIONS)
    plain = to_plain(recipe)
    assert list(plain["toy"]) == ["kind", "edge", "label"]
    assert next(iter(plain["work"]["more"][0])) == "kind"
    assert "bonus" not in plain
    again = read_text(to_yaml(plain), "again").values
    assert again == plain
    assert parse(again, SECTIONS) == recipe


@pytest.mark.parametrize(
    "value",
    [
        *("1e-3", "1", "012", "0o17", "0x1f", "true", "yes", "no", "null", "~", "", "<<", ".inf", "1_000"),
        *("2024-01-31", "1:30", "a: b", "# x", "- x", "line\nbreak", " space ", "@x", "ü", "\t", "\x07"),
        *(1, -1, 0.1, 1e-7, 1e22, 1e300, -0.0, True, False, None, [], {}, [[1], [2]], [{"a": 1}]),
    ],
)
def test_every_value_survives(value: object) -> None:
    plain = {"a": {"b": value}, "c": [value]}
    again = read_text(to_yaml(plain), "again").values
    assert again == plain
    assert type(again["a"]["b"]) is type(value)


def test_short_lists_stay_on_one_line() -> None:
    assert to_yaml({"a": [1, 2], "b": [{"c": 1}]}) == "a: [1, 2]\nb:\n- c: 1\n"


def test_fingerprint_ignores_order_and_notices_values() -> None:
    first = fingerprint({"a": 1, "b": {"c": 2, "d": 3}})
    assert first == fingerprint({"b": {"d": 3, "c": 2}, "a": 1})
    assert first != fingerprint({"a": 1, "b": {"c": 2, "d": 3.5}})
    assert len(first) == 64
    with pytest.raises(ValueError, match="Out of range"):
        fingerprint({"a": float("nan")})
