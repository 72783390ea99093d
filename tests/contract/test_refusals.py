"""The README's tables are those that the code gives: what is refused, and what was measured."""

from __future__ import annotations

from pathlib import Path

from benchmarks import families
from benchmarks.refusals import refusals, table
from fmdist import storage

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_readme_lists_every_refusal() -> None:
    assert "\n".join(table()) in README
    assert ("(none today" in README) == (not refusals())


def test_the_readme_shows_the_families_as_they_were_measured() -> None:
    """`python -m benchmarks.families --table` prints what is to stand between the two comments."""
    rows = storage.read_json(families.FILE)["rows"]
    shown = README.partition("<!-- families -->\n")[2].partition("\n<!-- end of families -->")[0]
    assert shown == "\n".join(families.table(rows))
    measured = {name for name, row in rows.items() if "error" not in row}
    assert {path.stem for path in families.RECIPES.glob("*.yaml")} - measured == NOT_HERE
    assert all(row["bar"]["met"] for row in rows.values() if "bar" in row)


NOT_HERE = {"cifar10", "fashion_mnist", "image_folder", "imdb", "mnist"}
"""Recipes whose data can't be had offline."""
