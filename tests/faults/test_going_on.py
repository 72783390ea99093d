"""What a run's folder says when it is stopped, and which recipes a finished run goes on by."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from fmdist import stages, storage
from fmdist.cli.main import main
from fmdist.errors import CheckpointError, TrainingError
from fmdist.recipe.reader import read
from tests.faults.rig import newest, outcome, records, small_recipe, train_until

EARLY = {"patience": 1, "min_delta": 0.9}
"""Stops after two epochs: no second evaluation is better by that much."""


def run_json(run: Path) -> dict[str, Any]:
    return dict(storage.read_json(run / "run.json"))


def recipe_of(run: Path) -> Mapping[str, Any]:
    return read(run / "recipe.yaml").values


def test_runs_lists_what_was_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stages.train(small_recipe(), output=tmp_path / "a-whole")
    train_until(4, signal.SIGTERM, small_recipe(), tmp_path / "b-first-epoch")
    train_until(14, signal.SIGTERM, small_recipe(), tmp_path / "c-second-epoch")
    with pytest.raises(TrainingError):
        stages.train(
            small_recipe({"batch_size": 2000, "optimizer": "SGD", "lr": 1e38}), output=tmp_path / "d-failed"
        )
    capsys.readouterr()
    assert main(["runs", str(tmp_path)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()[1:]]
    assert [line[1:4] for line in lines] == [
        ["finished", "2", "20"],
        ["interrupted", "0", "4"],
        ["interrupted", "1", "14"],
        ["failed", "-", "-"],
    ]
    assert lines[1][4] == "-"
    assert lines[2][4] == "accuracy"
    assert main(["runs", str(tmp_path), "--json"]) == 0
    whole, first, second, _ = json.loads(capsys.readouterr().out)["runs"]
    assert whole["metrics"].keys() == second["metrics"].keys()
    assert (first["metrics"], first["primary"]["value"]) == ({}, None)
    assert 0 < second["seconds"] < 60


def test_fewer_epochs_than_were_made_are_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    stages.train(small_recipe({"epochs": 2}), output=run)
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    for start in (stages.train, stages.run):
        with pytest.raises(
            CheckpointError, match=r"train\.epochs: 2 epochs are made already.*got 1.*least 2"
        ):
            start(small_recipe({"epochs": 1}), output=run)
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before


def test_fewer_epochs_than_an_interrupted_run_has_made(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train_until(14, signal.SIGTERM, small_recipe({"epochs": 3}), run)
    with pytest.raises(CheckpointError, match=r"1 epoch is made already in .*, and another is begun, got 1"):
        stages.train(small_recipe({"epochs": 1}), output=run)
    assert recipe_of(run)["train"]["epochs"] == 3
    stages.train(small_recipe({"epochs": 2}), output=run)
    assert run_json(run)["epoch"] == recipe_of(run)["train"]["epochs"] == 2


def test_run_changes_only_the_compression_of_a_finished_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    compress = {"passes": [], "max_drop": 0.5}
    stages.train(small_recipe({"epochs": 1}) | {"compress": compress}, output=run)
    trained = recipe_of(run)
    stages.run(small_recipe({"epochs": 1, "log_every_steps": 5, "checkpoint": {"keep": 7}}), output=run)
    assert recipe_of(run) == {name: value for name, value in trained.items() if name != "compress"}


def test_a_finished_run_that_goes_on_has_no_evaluation_until_it_ends(tmp_path: Path) -> None:
    run = tmp_path / "run"
    stages.train(small_recipe({"epochs": 1}), output=run)
    assert (run / "evaluation" / "test.json").is_file()
    train_until(3, signal.SIGTERM, small_recipe({"epochs": 2}), run)
    assert not (run / "evaluation").exists()
    stages.report(run)
    stages.train(small_recipe({"epochs": 2}), output=run)
    assert (run / "evaluation" / "test.json").is_file()


def test_an_early_stop_holds_until_its_settings_change(tmp_path: Path) -> None:
    run = tmp_path / "run"
    stages.train(small_recipe({"epochs": 4, "early_stopping": EARLY}), output=run)
    assert (run_json(run)["stopped_early"], run_json(run)["epoch"]) == (True, 2)
    for epochs in (4, 9):
        advice = r"stopped early after epoch 2\. Change train\.early_stopping to train on, or give another"
        with pytest.raises(CheckpointError, match=advice):
            stages.train(small_recipe({"epochs": epochs, "early_stopping": EARLY}), output=run)
    stages.train(small_recipe({"epochs": 4}), output=run)
    stages.train(small_recipe({"epochs": 4}), output=tmp_path / "whole")
    assert (run_json(run)["stopped_early"], run_json(run)["epoch"]) == (False, 4)
    went_on, whole = outcome(run), outcome(tmp_path / "whole")
    for name in ("tensors", "metrics", "test", "run"):
        assert went_on[name] == whole[name]


def test_another_patience_counts_anew_and_may_be_interrupted(tmp_path: Path) -> None:
    run = tmp_path / "run"
    stages.train(small_recipe({"epochs": 9, "early_stopping": EARLY}), output=run)
    patient = small_recipe({"epochs": 9, "early_stopping": EARLY | {"patience": 2}})
    train_until(3, signal.SIGTERM, patient, run)
    stages.run(patient, output=run)
    assert (run_json(run)["stopped_early"], run_json(run)["epoch"]) == (True, 4)
    assert len([line for line in records(run) if line["split"] == "validation"]) == 4


def test_a_stop_in_the_last_epoch_needs_both_changes(tmp_path: Path) -> None:
    run = tmp_path / "run"
    stages.train(small_recipe({"epochs": 2, "early_stopping": EARLY}), output=run)
    with pytest.raises(CheckpointError, match=r"Raise train\.epochs and change train\.early_stopping to"):
        stages.train(small_recipe({"epochs": 2, "early_stopping": EARLY}), output=run)
    with pytest.raises(CheckpointError, match=r"Raise train\.epochs to train on"):
        stages.train(small_recipe({"epochs": 2}), output=run)


def test_run_does_the_later_stages_of_a_run_that_stopped_early(tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = small_recipe({"epochs": 4, "early_stopping": EARLY})
    stages.run(recipe, output=run)
    last = newest(run)
    (run / "report.html").unlink()
    assert stages.run(recipe, output=run).report.is_file()
    assert newest(run) == last
    assert recipe_of(run)["train"]["epochs"] == 4
    with pytest.raises(CheckpointError, match=r"Change train\.early_stopping"):
        stages.run(recipe, output=run, overrides=["train.epochs=9"])
    with pytest.raises(CheckpointError, match="2 epochs are made already"):
        stages.run(recipe, output=run, overrides=["train.epochs=1"])
