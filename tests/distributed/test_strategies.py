"""What shards are saved as: the same files for every strategy and number of workers."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fmdist import stages, storage
from fmdist.orchestration import overseer, workers
from tests.distributed.rig import records, train_in_processes
from tests.distributed.test_workers import close, weights

pytestmark = pytest.mark.slow

STRATEGIES = ["ddp", "zero1", "zero2", "zero3", "fsdp"]
TRAIN = {"epochs": 4, "batch_size": 64, "lr": 2e-3, "threads": 1, "log_every_steps": 1, "trackers": []}
RECIPE: dict[str, Any] = {
    "name": "mlp",
    "seed": 3,
    "data": {"kind": "digits"},
    "model": {"kind": "mlp", "hidden": [33, 17], "dropout": 0.2},
    "task": {"kind": "classification", "primary": "loss"},
}


@pytest.fixture(autouse=True)
def processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overseer, "ready", lambda scaling, address: contextlib.nullcontext())
    monkeypatch.setattr(workers, "train_on_workers", train_in_processes)


def train(folder: Path, size: int, strategy: str, epochs: int = 4, **scaling: Any) -> Path:
    values = {**RECIPE, "train": {**TRAIN, "weight_decay": 0.1, "clip_norm": 1.0, "epochs": epochs}}
    stages.train({**values, "scaling": {"workers": size, "strategy": strategy, **scaling}}, output=folder)
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that knows nothing of strategies."""
    return train(tmp_path_factory.mktemp("alone") / "run", 1, "ddp")


def same(found: Path, wanted: Path) -> None:
    """Compare two runs' losses, weights and optimizers."""
    for left, right in zip(records(found), records(wanted), strict=True):
        for name, value in right.items():
            close(left[name], value)
    ours, theirs = weights(found), weights(wanted)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=2e-3, atol=3e-4)


def but(quick: str, strategies: Sequence[str]) -> list[Any]:
    """Leave all but one of the strategies to `make sweep`."""
    return [pytest.param(one, marks=() if one in quick.split() else pytest.mark.sweep) for one in strategies]


@pytest.mark.parametrize("strategy", but("zero2 fsdp", STRATEGIES))
def test_what_is_saved_is_the_same_and_shards_are_shards(strategy: str, alone: Path, tmp_path: Path) -> None:
    run = train(tmp_path / "run", 2, strategy)
    same(run, alone)
    held = storage.read_json(run / "run.json")["workers"]["held"]["model"]
    total = storage.read_json(alone / "run.json")["parameters"]
    assert len(held) == 2
    for one in held:
        assert one["updated"] == total if strategy == "ddp" else one["updated"] < 0.52 * total + 100
        assert (
            one["weights"] == total
            if strategy not in ("zero3", "fsdp")
            else one["weights"] < 0.52 * total + 100
        )
    assert stages.evaluate(run)["metrics"]["accuracy"] == stages.evaluate(alone)["metrics"]["accuracy"]


@pytest.mark.parametrize("strategy", but("zero3", STRATEGIES[1:]))
def test_a_run_goes_on_with_other_numbers_of_workers_and_strategies(
    strategy: str, alone: Path, tmp_path: Path
) -> None:
    run = train(tmp_path / "run", 2, strategy, epochs=1)
    train(run, 4, strategy, epochs=2)
    train(run, 1, strategy, epochs=3)
    train(run, 2, "ddp", epochs=4)
    same(run, alone)


LAYERS: dict[str, Any] = {"kind": "cnn", "channels": [8, 16], "blocks": 1, "norm": "group", "dropout": 0.2}


@pytest.mark.sweep
@pytest.mark.parametrize(
    ("strategy", "scaling", "tolerance"),
    [
        ("ddp", {"activation_checkpointing": True}, 5e-4),
        ("zero2", {"activation_checkpointing": True}, 5e-4),
        ("fsdp", {"activation_checkpointing": True}, 5e-4),
        ("zero1", {"offload": "cpu"}, 5e-4),
        ("zero2", {"offload": "cpu"}, 5e-4),
        ("zero3", {"offload": "cpu"}, 5e-4),
        ("ddp", {"gradient_compression": "fp16"}, 0.01),
        ("ddp", {"gradient_compression": "bf16"}, 0.03),
        ("ddp", {"gradient_compression": "power_sgd"}, 0.3),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else None,
)
def test_what_saves_memory_or_traffic_trains_alike(
    strategy: str, scaling: dict[str, Any], tolerance: float, tmp_path: Path
) -> None:
    values = {**RECIPE, "model": LAYERS, "train": {**TRAIN, "epochs": 2}}
    stages.train({**values, "scaling": {"workers": 1}}, output=tmp_path / "alone")
    stages.train(
        {**values, "scaling": {"workers": 2, "strategy": strategy, **scaling}}, output=tmp_path / "run"
    )
    for left, right in zip(records(tmp_path / "run"), records(tmp_path / "alone"), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=tolerance)


@pytest.mark.sweep
@pytest.mark.parametrize("strategy", ["zero1", "zero3", "fsdp"])
def test_what_is_adapted_can_be_sharded(strategy: str, alone: Path, tmp_path: Path) -> None:
    values = {**RECIPE, "train": {**TRAIN, "epochs": 1}}
    values["transfer"] = {"init_from": str(alone), "lora": {"rank": 4, "targets": ["*"]}}
    stages.train({**values, "scaling": {"workers": 1}}, output=tmp_path / "alone")
    stages.train({**values, "scaling": {"workers": 2, "strategy": strategy}}, output=tmp_path / "run")
    same(tmp_path / "run", tmp_path / "alone")


@pytest.mark.sweep
@pytest.mark.parametrize("strategy", ["ddp", "zero2", "zero3", "fsdp"])
def test_bfloat16_computes_alike_under_every_strategy(strategy: str, tmp_path: Path) -> None:
    values = {**RECIPE, "train": {**TRAIN, "epochs": 1, "precision": "bf16"}}
    stages.train({**values, "scaling": {"workers": 1}}, output=tmp_path / "alone")
    stages.train({**values, "scaling": {"workers": 2, "strategy": strategy}}, output=tmp_path / "run")
    for left, right in zip(records(tmp_path / "run"), records(tmp_path / "alone"), strict=True):
        assert left["loss"] == pytest.approx(right["loss"], rel=0.02)
