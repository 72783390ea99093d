"""Scores on a split, their confidence interval, and what is kept as examples."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fmdist import stages
from fmdist.data import digits
from fmdist.data.splits import DataSplits
from fmdist.models import mlp
from fmdist.stages.modules import Modules
from fmdist.tasks import classification
from fmdist.tasks.classification import Classification
from fmdist.training.evaluation import confidence_interval, evaluate, runner, score
from fmdist.training.scoring import EXAMPLES, gather, score_split, write_scores
from fmdist.training.signals import StopRequest

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def data() -> DataSplits:
    return digits.Config().build(seed=0)


@pytest.fixture(scope="module")
def task(data: DataSplits) -> Classification:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return classification.Config().build(data.spec, Modules(mlp.Config(norm="batch", dropout=0.5)))


def guesses(right: int, size: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return outputs and targets of which ``right`` agree."""
    target = np.arange(size) % 10
    answers = np.where(np.arange(size) < right, target, (target + 1) % 10)
    return np.eye(10, dtype=np.float32)[answers], target


def bounds_of(
    task: Classification, outputs: NDArray[np.float32], target: NDArray[np.int64], seed: int
) -> tuple[float, float]:
    found = confidence_interval(task, outputs, target, seed)
    assert found is not None
    return found


@pytest.mark.parametrize("batch_size", [7, 64, 10_000])
def test_batches_do_not_change_the_scores(data: DataSplits, task: Classification, batch_size: int) -> None:
    evaluated = evaluate(task, task.roles(), data.test, batch_size, CPU)
    assert evaluated is not None
    metrics, outputs = evaluated
    assert outputs.shape == (len(data.test), 10)
    assert metrics == pytest.approx(score(task, outputs, data.test.targets), rel=1e-5)
    expected = (outputs.argmax(1) == data.test.targets).mean()
    assert metrics["accuracy"] == pytest.approx(expected)


def test_evaluation_leaves_modes_and_statistics(data: DataSplits, task: Classification) -> None:
    model = task.roles()["model"]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for training in (True, False):
        model.train(training)
        evaluate(task, task.roles(), data.test, 64, CPU)
        assert model.training == training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_signal_ends_an_evaluation(data: DataSplits, task: Classification) -> None:
    model = task.roles()["model"].train()
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        assert evaluate(task, task.roles(), data.test, 64, CPU, stop) is None
    assert stop.signal == signal.SIGTERM
    assert model.training


def test_rows_alone_give_the_splits_outputs(data: DataSplits, task: Classification) -> None:
    task.roles()["model"].eval()
    _, outputs = score_split(task, data.test, "test", data.train, 64, seed=0)
    raw = data.test.raw(np.arange(len(data.test)))
    run = runner(task, task.roles(), CPU)
    again = run(data.preprocess(raw))
    assert np.abs(again - outputs).max() < 1e-5
    gathered = gather(data.test, task.decoding(), run)
    assert np.abs(gathered - outputs).max() < 1e-5


def test_the_interval_is_that_of_a_binomial(task: Classification) -> None:
    outputs, target = guesses(right=850, size=1000)
    low, high = bounds_of(task, outputs, target, seed=1)
    margin = 1.96 * np.sqrt(0.85 * 0.15 / 1000)
    assert low < 0.85 < high
    assert (low, high) == pytest.approx((0.85 - margin, 0.85 + margin), abs=0.007)
    assert low == pytest.approx(0.8265, abs=1e-4)  # Wilson's, not symmetric
    assert high == pytest.approx(0.8708, abs=1e-4)


def test_other_metrics_are_resampled(data: DataSplits) -> None:
    task = classification.Config(primary="f1_macro").build(data.spec, Modules(mlp.Config()))
    outputs, target = guesses(right=850, size=1000)
    low, high = bounds_of(task, outputs, target, seed=1)
    assert 0.8 < low < score(task, outputs, target)["f1_macro"] < high < 0.9
    assert (low, high) == bounds_of(task, outputs, target, seed=1)
    assert (low, high) != bounds_of(task, outputs, target, seed=2)


@pytest.mark.slow
def test_the_interval_covers_what_is_true(task: Classification) -> None:
    random = np.random.default_rng(0)
    covered = 0
    for draw in range(20):
        outputs, target = guesses(right=random.binomial(60, 0.8), size=60)
        low, high = bounds_of(task, outputs, target, seed=draw)
        covered += low <= 0.8 <= high
    assert covered >= 17  # of 20 at 95%: fewer have a probability of 2%


def test_all_right_is_not_certain(task: Classification) -> None:
    outputs, target = guesses(right=50, size=50)
    low, high = bounds_of(task, outputs, target, seed=0)
    assert low == pytest.approx(50 / (50 + 1.959964**2))
    assert high == 1.0


def test_scores_stand_beside_their_baseline(data: DataSplits, task: Classification, tmp_path: Path) -> None:
    record, outputs = score_split(task, data.test, "test", data.train, 64, seed=0)
    assert record["size"] == len(data.test)
    assert record["interval"][0] <= record["metrics"]["accuracy"] <= record["interval"][1]
    common = np.bincount(data.train.targets).argmax()
    assert record["baseline"]["accuracy"] == pytest.approx((data.test.targets == common).mean())
    write_scores(tmp_path / "evaluation", record, task.decoding(), outputs, data.test)
    assert json.loads((tmp_path / "evaluation" / "test.json").read_text()) == json.loads(json.dumps(record))
    with np.load(tmp_path / "evaluation" / "test.npz") as saved:
        assert np.array_equal(saved["outputs"], outputs)
        assert np.array_equal(saved["target"], data.test.targets)
    with np.load(tmp_path / "evaluation" / "examples.npz") as examples:
        rows = examples["index"]
        assert np.array_equal(examples["image"], data.test.raw(rows))
    assert len(set(rows.tolist())) == len(rows) == 2 * EXAMPLES
    chance = np.exp(outputs) / np.exp(outputs).sum(axis=1, keepdims=True)
    error = 1 - chance[np.arange(len(outputs)), data.test.targets]
    assert set(rows[:EXAMPLES].tolist()) == set(np.argsort(-error)[:EXAMPLES].tolist())


def test_a_bf16_run_is_scored_as_it_is_evaluated_later(tmp_path: Path) -> None:
    recipe = {
        "name": "bf16",
        "data": {"kind": "digits"},
        "model": {"kind": "mlp"},
        "task": {"kind": "classification"},
        "train": {"epochs": 1, "precision": "bf16", "trackers": []},
    }
    trained = stages.train(recipe, output=tmp_path / "run")
    assert stages.evaluate(trained.folder)["metrics"] == trained.metrics
