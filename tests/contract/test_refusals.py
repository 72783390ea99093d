"""What is refused stands in the README; nothing is refused that would work."""

from __future__ import annotations

from pathlib import Path

from benchmarks.refusals import refusals, table

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_readme_lists_every_refusal() -> None:
    assert "\n".join(table()) in README
    assert ("(none today" in README) == (not refusals())
