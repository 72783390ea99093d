from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fmdist import storage
from fmdist.compression.stage import Stages


class Work:
    """Writes one file and counts how often it was asked to."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.times = 0

    def __call__(self, _: Path) -> tuple[dict[str, Any], list[str]]:
        self.times += 1
        (self.output / "model.txt").write_text("weights")
        return {"size": 7}, ["model.txt"]


@pytest.fixture
def work(tmp_path: Path) -> Work:
    return Work(tmp_path)


def test_a_finished_stage_is_not_done_again(tmp_path: Path, work: Work) -> None:
    first = Stages(tmp_path).run("export", {"a": 1}, work)
    again = Stages(tmp_path).run("export", {"a": 1}, work)
    assert work.times == 1
    assert again == first
    assert first.name == "01-export"
    assert first.record == {"size": 7}
    assert first.files == {"model.txt": storage.sha256(tmp_path / "model.txt")}


def test_a_changed_setting_repeats_the_stage_and_uncommits_the_artifact(tmp_path: Path, work: Work) -> None:
    Stages(tmp_path).run("export", {"a": 1}, work)
    storage.seal(tmp_path, {})
    Stages(tmp_path).run("export", {"a": 1}, work)
    assert (tmp_path / storage.MANIFEST).exists()
    Stages(tmp_path).run("export", {"a": 2}, work)
    assert work.times == 2
    assert not (tmp_path / storage.MANIFEST).exists()


@pytest.mark.parametrize("damage", ["changed", "removed", "marker"])
def test_a_damaged_stage_is_repeated(tmp_path: Path, work: Work, damage: str) -> None:
    Stages(tmp_path).run("export", {"a": 1}, work)
    if damage == "changed":
        (tmp_path / "model.txt").write_text("weightz")
    elif damage == "removed":
        (tmp_path / "model.txt").unlink()
    else:
        (tmp_path / "stages/01-export/done.json").write_text('{"key": ')
    Stages(tmp_path).run("export", {"a": 1}, work)
    assert work.times == 2
    assert (tmp_path / "model.txt").read_text() == "weights"


def test_a_stage_that_fails_leaves_no_marker(tmp_path: Path, work: Work) -> None:
    def fail(_: Path) -> tuple[dict[str, Any], list[str]]:
        (tmp_path / "model.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Stages(tmp_path).run("export", {"a": 1}, fail)
    Stages(tmp_path).run("export", {"a": 1}, work)
    assert work.times == 1


def test_stages_are_numbered_in_order(tmp_path: Path, work: Work) -> None:
    stages = Stages(tmp_path)
    assert [stages.run(name, {}, work).name for name in ("export", "verify")] == ["01-export", "02-verify"]
