"""What can't be done to a model is said before any work, and nothing is left behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from fmdist.compression import pipeline
from fmdist.compression.config import CompressConfig
from fmdist.compression.passes import compress_weights, fold, low_rank, prune_channels, prune_weights
from fmdist.compression.pipeline import compress
from fmdist.compression.subject import Subject
from fmdist.errors import CapabilityError, CheckpointError, DataError


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(*_: Any) -> None:
        message = "work was begun"
        raise AssertionError(message)

    monkeypatch.setattr(pipeline, "export", work)


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("kind", [prune_channels, prune_weights, low_rank])
def test_an_unknown_layer(subject: Subject, tmp_path: Path, kind: Any) -> None:
    first = next(
        name for name, part in subject.export.module.named_modules() if isinstance(part, torch.nn.Conv2d)
    )
    config = CompressConfig(passes=(kind.Config(ignore=(f"{first}x",)),))
    with pytest.raises(CapabilityError, match=rf"ignore: no layer has this name.*Did you mean '{first}'"):
        compress(subject, config, tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()


@pytest.mark.usefixtures("no_work")
def test_names_that_low_rank_makes_are_not_unknown(subject: Subject, tmp_path: Path) -> None:
    passes = (low_rank.Config(), prune_weights.Config(ignore=("head.0",)))
    with pytest.raises(AssertionError, match="work was begun"):
        compress(subject, CompressConfig(passes=passes), tmp_path / "artifact")


@pytest.mark.usefixtures("no_work")
def test_a_family_that_a_pass_can_not_serve(subject: Subject, tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    plain = replace(subject, export=replace(subject.export, module=module))
    for settings, reason in ((fold.Config(), "no BatchNorm"), (prune_channels.Config(), "no layer whose")):
        with pytest.raises(CapabilityError, match=reason):
            compress(plain, CompressConfig(passes=(settings,)), tmp_path / "artifact")


@pytest.mark.usefixtures("no_work")
def test_more_calibration_samples_than_there_are(subject: Subject, tmp_path: Path) -> None:
    available = len(subject.splits.train)
    with pytest.raises(DataError, match=f"calibration_samples: .*got 100000; allowed: at most {available}"):
        compress(subject, CompressConfig(calibration_samples=100_000), tmp_path / "artifact")


@pytest.mark.usefixtures("no_work")
@pytest.mark.parametrize("place", ["file/artifact", "/proc/artifact"])
def test_a_place_that_can_not_be_written(subject: Subject, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="-o: nothing can be written there") as caught:
        compress(subject, CompressConfig(), tmp_path / place)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("kind", [prune_channels, low_rank])
def test_a_ratio_of_one(kind: Any) -> None:
    with pytest.raises(ValidationError, match="less than 1"):
        kind.Config(ratio=1.0)


@pytest.mark.slow
def test_four_bits_that_no_group_divides_are_refused_before_anything_is_trained(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "reduce", lambda *_: pytest.fail("a pass was begun"))
    rounding = compress_weights.Config(precision="int4_sym", group_size=48, all_layers=True)
    config = CompressConfig(passes=(prune_weights.Config(), rounding), runtimes=("openvino",))
    with pytest.raises(CapabilityError, match="group_size"):
        compress(subject, config, tmp_path / "artifact")
