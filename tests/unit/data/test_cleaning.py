from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from fmdist.contracts import Draw, TargetSpec
from fmdist.data.base import DataConfig
from fmdist.data.config import CleanConfig, SplitConfig
from fmdist.data.preprocess import Column, ImagePreprocess, TablePreprocess
from fmdist.data.raw import ArrayValues, BadRecord, RawData
from fmdist.data.splits import DataSplits
from fmdist.errors import DataError

LENIENT = CleanConfig(max_bad_share=0.5)


class Given(DataConfig):
    """A kind that reads what the test gives it."""

    def read(self) -> RawData:
        return _given[0]


_given: list[RawData] = []


def build(raw: RawData, quarantine: Path | None = None, **fields: Any) -> DataSplits:
    _given[:] = [raw]
    # not validated: these rules refuse images' outliers by the kind, which has none here
    return Given.model_construct(**fields).build(0, quarantine)


def table(numbers: list[float], labels: list[int] | None = None, **fields: Any) -> RawData:
    """One numeric column, two classes in turn."""
    template = TablePreprocess((Column("x"),))
    values = np.array([(number,) for number in numbers], template.dtype)
    targets = np.array(labels if labels is not None else [i % 2 for i in range(len(numbers))])
    return RawData(
        values=ArrayValues(values),
        targets=targets,
        target=TargetSpec("class", ("a", "b")),
        preprocess=template,
        sources=[f"file:{i}" for i in range(len(numbers))],
        **fields,
    )


def images(published: list[str] | None, contents: list[int], labels: list[int]) -> RawData:
    """Tiny images; equal contents are copies."""
    pixels = np.array(contents, np.uint8).reshape(-1, 1, 1, 1).repeat(2, axis=3)
    return RawData(
        values=ArrayValues(pixels),
        targets=np.array(labels),
        target=TargetSpec("class", ("a", "b")),
        preprocess=ImagePreprocess((1, 1, 2), "L"),
        sources=[f"file:{i}" for i in range(len(contents))],
        published=None if published is None else np.array(published),
    )


def column(data: DataSplits, split: Literal["train", "validation", "test"]) -> list[float]:
    part = getattr(data, split)
    return list(part.raw(np.arange(len(part)))["x"])


@pytest.mark.parametrize("gap", [float("nan"), float("inf"), float("-inf")])
def test_rows_that_are_not_finite_go_to_quarantine(gap: float, tmp_path: Path) -> None:
    file = tmp_path / "new" / "quarantine.jsonl"
    data = build(table([*range(20), gap]), file, clean=LENIENT)
    assert data.record["non_finite"] == 1
    assert sum(data.record["sizes"].values()) == 20
    assert [json.loads(line) for line in file.read_text().splitlines()] == [
        {"source": "file:20", "reason": "a number is missing or not finite"}
    ]


def test_rows_that_are_not_finite_stop_the_run_if_asked() -> None:
    with pytest.raises(DataError, match=r"file:20: 1 row.*column 'x'"):
        build(table([*range(20), float("nan")]), clean=CleanConfig(non_finite="fail"))


def test_too_many_bad_records_stop_the_run(tmp_path: Path) -> None:
    raw = table(list(range(98)), bad=[BadRecord("b:1", "torn"), BadRecord("b:2", "burnt")])
    assert build(raw, clean=CleanConfig(max_bad_share=0.02)).record["quarantined"] == 2
    file = tmp_path / "quarantine.jsonl"
    with pytest.raises(DataError, match=r"2 of 100 records are bad.*the first: b:1: torn"):
        build(raw, file, clean=CleanConfig(max_bad_share=0.01))
    assert len(file.read_text().splitlines()) == 2


def test_an_old_quarantine_file_does_not_outlive_its_reason(tmp_path: Path) -> None:
    file = tmp_path / "quarantine.jsonl"
    file.write_text("old\n")
    build(table(list(range(20))), file)
    assert not file.exists()


@pytest.mark.parametrize("bad", [[], [BadRecord("b:1", "torn")]])
def test_nothing_usable_is_an_error(bad: list[BadRecord]) -> None:
    with pytest.raises(DataError, match="torn" if bad else "the data set is empty"):
        build(table([], bad=bad))


def test_copies_go_before_the_split_and_conflicts_are_counted() -> None:
    raw = table([*range(20), 3.0, 4.0, -0.0], [i % 2 for i in range(20)] + [1, 1, 0])
    data = build(raw)
    assert (data.record["duplicates"], data.record["conflicting_duplicates"]) == (3, 1)
    rows = column(data, "train") + column(data, "validation") + column(data, "test")
    assert sorted(rows) == list(range(20))
    first_of_four = [s.targets[column(data, n).index(4.0)] for n, s in _parts(data) if 4.0 in column(data, n)]
    assert first_of_four == [0], "the first of the two targets is kept"


def test_copies_can_be_kept(caplog: pytest.LogCaptureFixture) -> None:
    data = build(table([*range(20), 3.0]), clean=CleanConfig(duplicates="keep"))
    assert sum(data.record["sizes"].values()) == 21
    assert not data.record["duplicates_dropped"]
    assert "too good" in caplog.text


def test_published_splits_are_kept_and_lose_copies_from_training_only() -> None:
    published = ["train"] * 40 + ["test"] * 10
    contents = [*range(38), 100, 101, *range(100, 110)]
    data = build(images(published, contents, [i % 2 for i in range(50)]))
    assert data.record["duplicates"] == 2
    assert len(data.test) == 10
    assert data.record["sizes"] == {"train": 32, "validation": 6, "test": 10}
    assert {int(row[0, 0, 0]) for row in data.test.raw(np.arange(10))} == set(range(100, 110))


def test_a_published_split_of_three_is_not_cut_again() -> None:
    published = ["train"] * 10 + ["validation"] * 6 + ["test"] * 4
    data = build(images(published, list(range(20)), [i % 2 for i in range(20)]))
    assert data.record["sizes"] == {"train": 10, "validation": 6, "test": 4}


def test_the_split_is_stratified() -> None:
    data = build(table(list(range(200)), [int(i % 10 == 0) for i in range(200)]))
    assert data.record["sizes"] == {"train": 140, "validation": 30, "test": 30}
    assert [int(part.targets.sum()) for _, part in _parts(data)] == [14, 3, 3]


@pytest.mark.parametrize("members", [3, 4, 5])
def test_a_small_class_is_in_every_split(members: int) -> None:
    data = build(table(list(range(60 + members)), [0] * 60 + [1] * members))
    assert all((part.targets == 1).any() for _, part in _parts(data))


def test_a_class_too_small_for_the_splits_is_named() -> None:
    raw = table(list(range(22)), [0] * 20 + [1] * 2)
    with pytest.raises(DataError, match=r"class 'b' has too few rows.*got 2"):
        build(raw)
    loose = SplitConfig(stratify=False)
    assert sum(build(raw, split=loose).record["sizes"].values()) == 22


def test_too_few_rows_are_refused_without_classes_too() -> None:
    with pytest.raises(DataError, match="too few rows for the splits, got 2"):
        build(table([1.0, 2.0]), split=SplitConfig(stratify=False))


@pytest.mark.parametrize("rule", ["iqr", "zscore"])
def test_outliers_leave_the_training_split_only(rule: Literal["iqr", "zscore"]) -> None:
    numbers = np.random.default_rng(0).normal(size=300)
    numbers[::15] = 1000 + np.arange(20)
    raw = table(numbers.tolist())
    before = build(raw)
    data = build(raw, clean=CleanConfig(outliers=rule, outlier_threshold=2.5))
    assert max(column(data, "train")) < 10
    assert data.record["outliers"] == sum(x > 10 for x in column(before, "train")) > 0
    for name in ("validation", "test"):
        assert data.record["sha256"][name] == before.record["sha256"][name]
    assert max(column(data, "validation") + column(data, "test")) > 1000


def test_an_almost_constant_column_has_no_outliers() -> None:
    raw = table([0.0] * 100 + [1.0] * 5)
    clean = CleanConfig(duplicates="keep", outliers="iqr")
    assert build(raw, clean=clean).record["outliers"] == 0


def test_one_class_only_is_refused() -> None:
    with pytest.raises(DataError, match=r"all rows are of one class.*got 'a'"):
        build(table([1.0, 2.0, 3.0], [0, 0, 0]))


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_out_of_range_is_refused_with_its_source(label: int) -> None:
    with pytest.raises(DataError, match=f"file:2: 1 label.*got {label}; allowed: 0 to 1"):
        build(table([1.0, 2.0, 3.0], [0, 1, label]))


def test_a_target_that_is_not_finite_is_refused() -> None:
    targets = np.array([[1.0], [np.nan], [2.0]], np.float32)
    with pytest.raises(DataError, match="file:1: a target that is not a finite number"):
        build(_with_targets(table([1.0, 2.0, 3.0]), targets, TargetSpec("value", ("y",))))


def test_cleaning_may_not_leave_one_class() -> None:
    raw = table([0.0, 1.0, 2.0] * 20 + [999.0, 1000.0, 1001.0], [0] * 60 + [1] * 3)
    clean = CleanConfig(duplicates="keep", outliers="zscore", outlier_threshold=2)
    with pytest.raises(DataError, match="fewer than two classes"):
        build(raw, clean=clean)


def test_values_have_moments_and_labels_have_counts() -> None:
    rows = table(list(range(40)))
    values = np.stack([np.arange(40), np.arange(40) * 2 + 1], axis=1).astype(np.float32)
    as_values = build(_with_targets(rows, values, TargetSpec("value", ("u", "v"))))
    train = as_values.train.targets.astype(np.float64)
    assert np.allclose(as_values.spec.moments, list(zip(train.mean(axis=0), train.std(axis=0), strict=True)))
    assert as_values.spec.counts == ()
    as_labels = build(_with_targets(rows, values % 2, TargetSpec("labels", ("u", "v"))))
    assert as_labels.spec.counts == (int(as_labels.train.targets[:, 0].sum()), len(as_labels.train))
    batch = as_labels.train.__getitems__(Draw(0, np.array([0, 1])))
    assert str(batch["target"].dtype) == "torch.float32"


@pytest.mark.parametrize(
    "fields",
    [
        {"split": {"train": 0.7, "validation": 0.2, "test": 0.2}},
        {"split": {"train": 1.0}},
        {"clean": {"max_bad_share": 1.0}},
        {"clean": {"outliers": "zscore"}},
        {"augment": {"scale": {"min": 1.2, "max": 0.8}}},
        {"augment": {"horizontal_flip": 1.5}},
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        Given.model_validate(fields)


def _with_targets(raw: RawData, targets: np.ndarray[Any, Any], target: TargetSpec) -> RawData:
    return RawData(raw.values, targets, target, raw.preprocess, raw.sources)


def _parts(data: DataSplits) -> list[tuple[Any, Any]]:
    return [(name, getattr(data, name)) for name in ("train", "validation", "test")]
