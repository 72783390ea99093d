"""What a run writes while it trains: metrics.jsonl, TensorBoard's events, the profile."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

from fmdist.contracts import Batch, LossOut, Roles
from fmdist.data import digits
from fmdist.data.splits import DataSplits
from fmdist.errors import DependencyMissing
from fmdist.models import mlp
from fmdist.tasks import classification
from fmdist.tasks.classification import Classification
from fmdist.training.checkpoint import CheckpointStore
from fmdist.training.snapshot import Snapshot

if TYPE_CHECKING:
    from tests.conftest import Fit

TRAIN: dict[str, Any] = {"epochs": 2, "batch_size": 128, "log_every_steps": 1}
STEPS = 20


@pytest.fixture(scope="module")
def data() -> DataSplits:
    return digits.Config().build(seed=0)


class Crashing(Classification):
    """Digits that crash at a call of the loss."""

    crash_at = 0
    calls = 0

    def loss(self, roles: Roles, batch: Batch, generator: torch.Generator) -> LossOut:
        self.calls += 1
        if self.calls == self.crash_at:
            message = "the power went out"
            raise RuntimeError(message)
        return super().loss(roles, batch, generator)


def build(data: DataSplits, crash_at: int = 0) -> Crashing:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        task = Crashing(classification.Config(), data.spec, mlp.Config(hidden=(8,)).build(data.spec, 10))
    task.crash_at = crash_at
    return task


def read_lines(folder: Path, split: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


def events(folder: Path) -> EventAccumulator:
    files = list(folder.rglob("events.out.tfevents.*"))
    assert files
    accumulator = EventAccumulator(str(files[0].parent))
    accumulator.Reload()
    return accumulator


def test_every_step_is_recorded_once(data: DataSplits, fit: Fit, tmp_path: Path) -> None:
    fit(build(data), data, TRAIN, tmp_path)
    lines = read_lines(tmp_path, "train")
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    assert all({"loss", "lr", "samples_per_s", "seconds"} <= set(line) for line in lines)
    assert [line["step"] for line in read_lines(tmp_path, "validation")] == [10, 20]
    scalars = events(tmp_path).Scalars("train/loss")
    assert [event.step for event in scalars] == [line["step"] for line in lines]
    assert [event.value for event in scalars] == pytest.approx([line["loss"] for line in lines])
    assert [event.step for event in events(tmp_path).Scalars("validation/accuracy")] == [10, 20]


def test_a_record_covers_the_steps_since_the_last(data: DataSplits, fit: Fit, tmp_path: Path) -> None:
    fit(build(data), data, TRAIN, tmp_path / "fine")
    fit(build(data), data, TRAIN | {"log_every_steps": 4}, tmp_path / "coarse")
    fine = [line["loss"] for line in read_lines(tmp_path / "fine", "train")]
    coarse = read_lines(tmp_path / "coarse", "train")
    assert [line["step"] for line in coarse] == [4, 8, 10, 12, 16, 20], "and at the end of an epoch"
    assert coarse[0]["loss"] == pytest.approx(sum(fine[:4]) / 4)


def test_steps_made_again_after_a_crash_are_not_doubled(
    data: DataSplits, fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Files of one second are read in the order of their names, which end with a number of the process's own.
    monkeypatch.setattr(event_file_writer._global_uid, "_value", 0)
    train = TRAIN | {"checkpoint": {"every_steps": 4}}
    with pytest.raises(RuntimeError, match="the power went out"):
        fit(build(data, crash_at=8), data, train, tmp_path)
    assert read_lines(tmp_path, "train")[-1]["step"] == 7, "three steps after the checkpoint"
    progress = fit(build(data), data, train, tmp_path)
    assert progress.step == STEPS
    assert [line["step"] for line in read_lines(tmp_path, "train")] == list(range(1, STEPS + 1))
    scalars = events(tmp_path).Scalars("train/loss")
    assert [event.step for event in scalars] == list(range(1, STEPS + 1))


def test_a_kill_while_a_checkpoint_is_written_costs_less_than_two_intervals(
    data: DataSplits, fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, committed, at_stake = CheckpointStore.commit, 0, []

    def slowly(
        store: CheckpointStore, step: int, copied: Snapshot, state: Mapping[str, Any], score: float | None
    ) -> None:
        nonlocal committed
        time.sleep(0.3)  # far more than the steps meanwhile take
        at_stake.append(read_lines(tmp_path, "train")[-1]["step"] - committed)
        commit(store, step, copied, state, score)
        committed = step

    monkeypatch.setattr(CheckpointStore, "commit", slowly)
    fit(build(data), data, TRAIN | {"checkpoint": {"every_steps": 5}}, tmp_path)
    assert 5 < max(at_stake) < 10, "training goes on meanwhile, but not to the next that is due"


def test_without_trackers_there_are_no_events(data: DataSplits, fit: Fit, tmp_path: Path) -> None:
    fit(build(data), data, TRAIN | {"trackers": ()}, tmp_path)
    assert not list(tmp_path.rglob("events.out.tfevents.*"))
    assert len(read_lines(tmp_path, "train")) == STEPS


@pytest.mark.parametrize("tracker", ["wandb", "mlflow"])
def test_a_missing_tracker_names_its_extra(data: DataSplits, fit: Fit, tmp_path: Path, tracker: str) -> None:
    if importlib.util.find_spec(tracker) is not None:
        pytest.skip(f"{tracker} is installed")
    task = build(data)
    with pytest.raises(DependencyMissing, match=rf"'{tracker}' needs.*pip install 'fmdist\[{tracker}\]'"):
        fit(task, data, TRAIN | {"trackers": (tracker,)}, tmp_path)
    assert task.calls == 0


def test_a_profile_says_where_the_time_goes(data: DataSplits, fit: Fit, tmp_path: Path) -> None:
    fit(build(data), data, TRAIN | {"epochs": 3}, tmp_path, profile=True)
    trace = json.loads((tmp_path / "profile" / "trace.json").read_text())
    assert any("addmm" in event.get("name", "") for event in trace["traceEvents"])
    table = (tmp_path / "profile" / "table.txt").read_text()
    rows = [line.split() for line in table.splitlines()[1:] if line.endswith("%") and len(line.split()) == 3]
    assert {"data", "forward", "backward", "optimizer"} <= {row[0] for row in rows}
    assert sum(float(row[2].rstrip("%")) for row in rows) == pytest.approx(100, abs=0.5)
    assert "over 20 steps" in table
