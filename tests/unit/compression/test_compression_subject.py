from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fmdist.compression.subject import (
    Subject,
    batch_of,
    calibration_rows,
    drop,
    score,
    torch_rows,
    write_batch,
)
from fmdist.errors import CompressionError


def test_calibration_takes_evenly_from_every_class_and_is_seeded() -> None:
    targets = np.array([0] * 900 + [1] * 90 + [2] * 10)
    rows = calibration_rows(targets, 30, seed=1)
    assert np.bincount(targets[rows]).tolist() == [10, 10, 10]
    assert len(set(rows.tolist())) == 30
    np.testing.assert_array_equal(rows, calibration_rows(targets, 30, seed=1))
    assert rows.tolist() != calibration_rows(targets, 30, seed=2).tolist()
    # A class that runs out leaves its share to the others.
    assert np.bincount(targets[calibration_rows(targets, 60, seed=1)]).tolist() == [25, 25, 10]


@pytest.mark.parametrize("targets", [np.zeros((20, 2), np.float32), np.arange(20)])
def test_calibration_takes_all_there_is(targets: np.ndarray) -> None:
    assert calibration_rows(targets, 100, seed=0).tolist() == list(range(20))


def test_drop_is_positive_when_worse(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject.task, "primary", ("accuracy", "max"))
    assert drop(subject.task, 0.9, 0.8) == pytest.approx(0.1)
    monkeypatch.setattr(subject.task, "primary", ("loss", "min"))
    assert drop(subject.task, 0.9, 0.8) == pytest.approx(-0.1)


def test_outputs_are_scored_by_the_task(subject: Subject) -> None:
    test = subject.splits.test
    outputs = torch_rows(subject.task, test)
    accuracy = float((outputs.argmax(axis=1) == test.targets).mean())
    assert score(subject.task, outputs, test.targets)["accuracy"] == pytest.approx(accuracy)


def test_outputs_that_are_not_finite_are_refused(subject: Subject) -> None:
    outputs = torch_rows(subject.task, subject.splits.test)
    outputs[3, 4] = np.nan
    with pytest.raises(CompressionError, match="not finite"):
        score(subject.task, outputs, subject.splits.test.targets)


def test_metrics_that_refuse_nan_are_not_asked(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = np.full((len(subject.splits.test), 10), np.nan, np.float32)
    monkeypatch.setattr("fmdist.compression.subject.score_rows", lambda *arguments: 1 / 0)
    with pytest.raises(CompressionError, match="not finite"):
        score(subject.task, outputs, subject.splits.test.targets)


def test_inputs_on_disk_are_those_of_the_split(subject: Subject, tmp_path: Path) -> None:
    split = subject.splits.test
    files = write_batch(subject.splits, split, tmp_path, "test")
    expected = batch_of(split, np.arange(len(split)))
    assert set(files) == {"image", "target", "index"}
    for name, file in files.items():
        np.testing.assert_array_equal(np.load(file), expected[name])
