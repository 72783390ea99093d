"""Damaged checkpoints are named, set aside and passed over; nothing else is lost."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from fmdist import stages, storage
from fmdist.errors import CheckpointError, DataError
from fmdist.training.checkpoint import CheckpointStore
from fmdist.training.config import CheckpointConfig
from fmdist.training.snapshot import Trainables
from tests.faults.rig import load, newest, outcome, save, small_recipe, steps, train_until

RECIPE = small_recipe({"ema": {"decay": 0.9}, "checkpoint": {"every_steps": 4, "keep": 4}})
FILES = (
    "model.safetensors",
    "ema.model.safetensors",
    "optimizer.model.safetensors",
    "state.json",
    "manifest.json",
)


def flip_first(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[0] ^= 1
    file.write_bytes(content)


def flip_middle(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 16
    file.write_bytes(content)


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def empty(file: Path) -> None:
    os.truncate(file, 0)


DAMAGES: tuple[Callable[[Path], None], ...] = (flip_first, flip_middle, truncate, empty, Path.unlink)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`whole` is finished; `stopped` ends at step 14, after 4, 8, 10 (evaluated) and 12."""
    folder = tmp_path_factory.mktemp("damage")
    stages.train(RECIPE, output=folder / "whole")
    train_until(14, signal.SIGTERM, RECIPE, folder / "stopped")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def stopped(runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs / "stopped", tmp_path / "run"))


def store(run: Path) -> CheckpointStore:
    return CheckpointStore(run / "checkpoints", "max", CheckpointConfig())


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("name", FILES)
def test_each_damage_of_each_file(
    stopped: Path, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    assert [path.name[5:] for path in steps(stopped)] == [
        "0000000008",
        "0000000010-evaluated",
        "0000000012",
        "0000000014",
    ]
    damage(newest(stopped) / name)
    saved = store(stopped).newest()
    assert saved is not None
    assert saved.step == 12
    said = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(said) == 1
    # In a damaged manifest a changed hash or name shows in the file that it stands for.
    assert name in said[0] or name == "manifest.json"
    assert "step-0000000014.corrupt" in said[0]
    assert (stopped / "checkpoints" / "step-0000000014.corrupt").is_dir()


def test_a_run_goes_on_from_the_one_before_and_ends_the_same(runs: Path, stopped: Path) -> None:
    flip_middle(newest(stopped) / "model.safetensors")
    stages.train(RECIPE, output=stopped)
    assert outcome(stopped) == outcome(runs / "whole")


def test_the_same_checkpoint_may_be_damaged_twice(stopped: Path) -> None:
    for _ in range(2):
        copy = shutil.copytree(newest(stopped), stopped / "copy")
        truncate(newest(stopped) / "state.json")
        assert store(stopped).newest() is not None
        shutil.move(copy, stopped / "checkpoints" / "step-0000000014")
    assert len(list(stopped.glob("checkpoints/*.corrupt"))) == 2


def test_all_damaged_is_an_error_that_stays_one(stopped: Path) -> None:
    for path in steps(stopped):
        (path / "manifest.json").unlink()
    before = (stopped / "metrics.jsonl").read_bytes()
    for _ in range(2):  # not even the second time does the run start over
        with pytest.raises(CheckpointError, match=r"all checkpoints are damaged: step-0000000008\.corrupt, "):
            stages.train(RECIPE, output=stopped)
    assert (stopped / "metrics.jsonl").read_bytes() == before
    assert len(list(stopped.glob("checkpoints/*.corrupt"))) == 4
    assert CheckpointError.exit_code == 2


def test_an_unknown_format_is_refused_and_left_alone(stopped: Path) -> None:
    manifest = storage.read_json(newest(stopped) / "manifest.json")
    storage.seal(newest(stopped), {**manifest, "format": 7})
    with pytest.raises(CheckpointError, match=r"step-0000000014: .*unknown format, got 7; allowed: 1"):
        stages.train(RECIPE, output=stopped)
    assert newest(stopped).name == "step-0000000014"


@pytest.mark.parametrize("manifest", ["[]", "{}", '{"files": [1]}', '{"files": {"state.json": {}}}', "\xff"])
def test_a_manifest_that_is_none(stopped: Path, manifest: str) -> None:
    (newest(stopped) / "manifest.json").write_bytes(manifest.encode("latin-1"))
    saved = store(stopped).newest()
    assert saved is not None
    assert saved.step == 12


def test_a_checkpoint_of_another_recipe_is_refused(stopped: Path, tmp_path: Path) -> None:
    other = small_recipe(model={"kind": "mlp", "hidden": [8]})
    train_until(16, signal.SIGTERM, other, tmp_path / "other")
    shutil.copytree(newest(tmp_path / "other"), stopped / "checkpoints" / "step-0000000016")
    with pytest.raises(
        CheckpointError, match=r"step-0000000016: a checkpoint of another recipe.*model\.hidden"
    ):
        stages.train(RECIPE, output=stopped)


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    def trainables(size: int) -> Trainables:
        model = nn.Linear(size, 2)
        return Trainables({"model": model}, {}, {"model": torch.optim.SGD(model.parameters())})

    kept = CheckpointStore(tmp_path, "max", CheckpointConfig())
    save(kept, 1, trainables(3), {}, None)
    saved = kept.newest()
    assert saved is not None
    with pytest.raises(CheckpointError, match="the weights don't fit the model of the recipe"):
        load(kept, saved, trainables(4))


def test_a_damaged_best_does_not_stop_the_run(
    runs: Path, stopped: Path, caplog: pytest.LogCaptureFixture
) -> None:
    best = stopped / "checkpoints" / "step-0000000010-evaluated"
    (best / "state.json").unlink()
    stages.train(RECIPE, output=stopped)
    assert "It can't be chosen as the best" in caplog.text or not best.exists()
    assert outcome(stopped)["tensors"] == outcome(runs / "whole")["tensors"]


def test_data_that_changed_is_refused(stopped: Path) -> None:
    record = storage.read_json(stopped / "data.json")
    record["sha256"]["validation"] = "0" * 64
    storage.write_json(stopped / "data.json", record)
    with pytest.raises(DataError, match=r"the data has changed since .* began: another validation"):
        stages.train(RECIPE, output=stopped)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 1}'])
def test_a_damaged_record_is_named_and_can_be_removed(runs: Path, stopped: Path, content: str) -> None:
    (stopped / "run.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"run\.json: the file is damaged.*Remove this file"):
        stages.train(RECIPE, output=stopped)
    (stopped / "run.json").unlink()
    if content == "{":
        stages.train(RECIPE, output=stopped)
        assert outcome(stopped) == outcome(runs / "whole")


def test_metrics_that_lost_their_end_are_mended(stopped: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics = stopped / "metrics.jsonl"
    lines = metrics.read_bytes().splitlines(keepends=True)
    os.truncate(metrics, len(lines[0]) + 10)
    stages.train(RECIPE, output=stopped)
    assert "metrics.jsonl has lost records" in caplog.text
    assert metrics.read_bytes().startswith(lines[0])
    assert len(outcome(stopped)["metrics"]) > 1  # every line is JSON


def linear() -> Trainables:
    model = nn.Linear(2, 2)
    return Trainables({"model": model}, {}, {"model": torch.optim.SGD(model.parameters())})


def names(folder: Path) -> list[int]:
    return sorted(int(path.name[5:15]) for path in folder.glob("step-*"))


@pytest.mark.parametrize(("mode", "best"), [("max", 3), ("min", 4)])
def test_best_and_last_are_kept(tmp_path: Path, mode: str, best: int) -> None:
    kept = CheckpointStore(tmp_path, mode, CheckpointConfig(keep=1))
    for step, score in enumerate([0.5, 0.9, 0.9, 0.1, 0.4, None], start=1):
        save(kept, step, linear(), {}, score)
    assert names(tmp_path) == [best, 6]
    found = kept.best()
    assert found is not None
    assert found.step == best


def test_old_ones_are_removed_by_age(tmp_path: Path) -> None:
    kept = CheckpointStore(tmp_path, "max", CheckpointConfig(keep=5, max_age_hours=1))
    for step in (1, 2, 3):
        save(kept, step, linear(), {}, 0.5 if step == 1 else None)
    assert names(tmp_path) == [1, 2, 3]
    for path in tmp_path.glob("step-*"):
        os.utime(path, (time.time() - 7200,) * 2)
    save(kept, 4, linear(), {}, None)
    assert names(tmp_path) == [1, 4]


def test_a_kill_while_old_ones_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = CheckpointStore(tmp_path, "max", CheckpointConfig(keep=1))
    save(kept, 1, linear(), {}, None)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path: (path / "manifest.json").unlink())
        save(kept, 2, linear(), {}, None)
    assert len(list(tmp_path.glob(".step-*.tmp"))) == 1
    saved = kept.newest()
    assert saved is not None
    assert saved.step == 2
    assert not list(tmp_path.glob(".*"))
