"""What every data kind promises; a new file in `fmdist/data` is tested here as soon as it has a sample."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fmdist import component
from fmdist.contracts import DataSpec, Draw
from fmdist.data.base import DataConfig
from fmdist.data.loader import evaluation_loader
from fmdist.data.preprocess import Preprocess
from fmdist.data.splits import DataSplits, Samples
from fmdist.errors import DataError
from tests.contract.data_samples import SAMPLES

KINDS = sorted(component.kinds("data"))
NAMES = ("train", "validation", "test")

Make = Callable[..., DataConfig]


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Return a function that makes this kind's config over its sample, with other fields changed."""
    return maker(request.param, tmp_path)


def maker(kind: str, folder: Path) -> Make:
    values = SAMPLES[kind](folder)
    config = component.load(component.find("data", kind))

    def with_fields(**fields: Any) -> DataConfig:
        made: DataConfig = config.model_validate(values | fields)
        return made

    return with_fields


def modality(kind: str) -> str:
    found: str = component.load(component.find("data", kind)).modality
    return found


NUMERIC = [kind for kind in KINDS if modality(kind) in ("image", "table")]
ROWS = [kind for kind in KINDS if modality(kind) in ("image", "table", "text")]
"""Kinds whose samples are the rows that were read, one class each."""

of_numbers = pytest.mark.parametrize("make", NUMERIC, indirect=True)
of_rows = pytest.mark.parametrize("make", ROWS, indirect=True)


def splits_of(data: DataSplits) -> dict[str, Samples]:
    return {name: getattr(data, name) for name in NAMES}


def everything(split: Samples) -> dict[str, Any]:
    return dict(split.__getitems__(Draw(0, np.arange(len(split)))))


def row_bytes(split: Samples) -> list[bytes]:
    raw = split.raw(np.arange(len(split)))
    return [row.tobytes() if raw.dtype.names is None else repr(row).encode() for row in raw]


def test_every_kind_has_a_sample() -> None:
    assert sorted(SAMPLES) == KINDS


def test_config_survives_the_recipe(make: Make) -> None:
    config = make()
    written = json.loads(json.dumps(config.to_recipe()))
    assert written.pop("kind") in KINDS
    assert type(config).model_validate(written) == config


@of_rows
def test_splits_share_no_row_and_hold_no_copies(make: Make) -> None:
    rows = [row for split in splits_of(make().build(0)).values() for row in row_bytes(split)]
    assert len(set(rows)) == len(rows)


def test_split_depends_on_the_seed_alone(make: Make) -> None:
    first, again, other = (make().build(seed).record["sha256"] for seed in (1, 1, 2))
    assert first == again
    # A text file is cut where it is; everything else is shuffled.
    assert (first["validation"] == other["validation"]) == (make().modality == "windows")


def test_split_seed_overrides_the_recipes(make: Make) -> None:
    fixed = make(split={"seed": 1})
    assert fixed.build(5).record["sha256"] == make().build(1).record["sha256"]


@of_rows
def test_record_counts_every_row(make: Make) -> None:
    data = make().build(0)
    record = data.record
    assert json.loads(json.dumps(record)) == record
    assert record["sizes"] == {name: len(split) for name, split in splits_of(data).items()}
    left_out = [record[name] for name in ("quarantined", "non_finite", "duplicates", "outliers")]
    assert sum(record["sizes"].values()) + sum(left_out) == record["records"]


def test_batches_are_what_the_spec_says(make: Make) -> None:
    data = make().build(0)
    assert DataSpec.from_json(json.loads(json.dumps(data.spec.to_json()))) == data.spec
    for split in splits_of(data).values():
        draw = Draw(0, np.array([2, 0, 2]))
        batch = split.__getitems__(draw)
        assert set(batch) >= {*(item.name for item in data.spec.inputs), "target", "index"}
        for item in data.spec.inputs:
            values = batch[item.name]
            assert len(values) == 3
            for size, wanted in zip(values.shape[1:], item.shape, strict=True):
                assert 1 <= size <= item.longest if wanted is None else size == wanted
            assert str(values.dtype) == f"torch.{item.dtype}"
            assert torch.isfinite(values).all()
            assert item.dtype == "float32" or 0 <= values.min() <= values.max() < item.size
        assert batch["index"].tolist() == [2, 0, 2]
        targets = split.targets[draw.indices]
        used = batch["target"].shape[1] if batch["target"].ndim > 1 else None
        assert np.array_equal(batch["target"].numpy(), targets if used is None else targets[:, :used])
        assert used is None or (targets[:, used:] <= 0).all(), "only padding may be left out"


@of_rows
def test_targets_are_in_range(make: Make) -> None:
    data = make().build(0)
    target, classes = data.spec.target, len(data.spec.target.names)
    assert target.kind == "class"
    for split in splits_of(data).values():
        assert split.targets.dtype == np.int64
        assert set(split.targets.tolist()) == set(range(classes)), "every class is in every split"
    assert data.spec.counts == tuple(np.bincount(data.train.targets, minlength=classes))
    assert data.spec.size == sum(data.spec.counts) == len(data.train)


@of_rows
def test_preprocess_survives_json_and_is_what_the_split_yields(make: Make) -> None:
    data = make().build(0)
    preprocess = Preprocess.from_json(json.loads(json.dumps(data.preprocess.to_json())))
    assert preprocess == data.preprocess
    for split in splits_of(data).values():
        again = preprocess(split.raw(np.arange(len(split))))
        for item in preprocess.inputs:
            assert np.array_equal(again[item.name], everything(split)[item.name].numpy())


@of_numbers
def test_normalization_is_fitted_on_the_training_split(make: Make) -> None:
    data = make().build(0)
    values = everything(data.train)[data.preprocess.inputs[0].name].double()
    axes = [axis for axis in range(values.ndim) if axis != 1]
    mean, std = values.mean(axes), values.std(axes, correction=0)
    categories = [c.categories or [None] for c in getattr(data.preprocess, "columns", ())]
    numeric = [len(names) == 1 for names in categories for _ in names] or [True] * len(mean)
    assert any(numeric)
    assert mean[numeric].abs().max() < 1e-5
    assert (std[numeric] - 1).abs().max() < 1e-5


@of_numbers
def test_without_normalization_values_keep_their_scale(make: Make) -> None:
    plain, normalized = make(normalize=False).build(0), make().build(0)
    name = plain.preprocess.inputs[0].name
    assert everything(plain.train)[name].min() >= 0
    assert everything(normalized.train)[name].min() < 0


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_yields_every_row_once_in_order(make: Make, name: str) -> None:
    split = splits_of(make().build(0))[name]
    batches = list(evaluation_loader(split, batch_size=7))
    assert torch.cat([batch["index"] for batch in batches]).tolist() == list(range(len(split)))
    assert sum(len(batch["target"]) for batch in batches) == len(split)


def test_every_row_knows_where_it_came_from(make: Make) -> None:
    sources = [source for split in splits_of(make().build(0)).values() for source in split.sources]
    assert len(set(sources)) == len(sources)


def test_augmentation_is_for_images_only(make: Make) -> None:
    if make().modality != "image":
        with pytest.raises(ValueError, match="no images to augment"):
            make(augment={"horizontal_flip": 1.0})
        return
    data = make(augment={"horizontal_flip": 1.0}).build(0)
    name = data.preprocess.inputs[0].name
    flipped, plain = everything(data.train)[name], everything(data.train.plain())[name]
    assert torch.equal(flipped, plain.flip(-1))
    assert not torch.equal(flipped, plain)


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"digits"}))
def test_missing_files_are_named(kind: str, tmp_path: Path) -> None:
    values = SAMPLES[kind](tmp_path)
    where = next(name for name in ("path", "root", "source", "paths", "name") if name in values)
    config = component.load(component.find("data", kind))
    with pytest.raises(DataError, match="nowhere") as caught:
        config.model_validate(values | {where: str(tmp_path / "nowhere")}).build(0)
    assert re.search("no such|not found|Couldn't find", str(caught.value))
