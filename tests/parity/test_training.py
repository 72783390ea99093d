"""Our loop against a plain torch loop: equal weights, bit for bit."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

from fmdist.contracts import Draw, TargetSpec
from fmdist.data import digits
from fmdist.data.building import build_splits
from fmdist.data.config import CleanConfig, SplitConfig
from fmdist.data.plan import BatchPlan
from fmdist.data.preprocess import ImagePreprocess
from fmdist.data.raw import ArrayValues, RawData
from fmdist.data.splits import DataSplits
from fmdist.models import mlp, resnet
from fmdist.models.base import ModelConfig
from fmdist.stages.modules import Modules
from fmdist.tasks import classification
from fmdist.tasks.classification import Classification
from fmdist.training.checkpoint import weights_digest

if TYPE_CHECKING:
    from tests.conftest import Fit

OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0),
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9),
}
RECIPES: dict[str, dict[str, Any]] = {
    "AdamW": {"optimizer": "AdamW", "lr": 1e-3},
    "SGD": {"optimizer": "SGD", "lr": 1e-3, "options": {"momentum": 0.9}},
}
SCHEDULES = ["constant", "cosine"]


@pytest.fixture(scope="module")
def digit_images() -> DataSplits:
    return digits.Config().build(seed=0)


@pytest.fixture(scope="module")
def random_images() -> DataSplits:
    """96 random colour images of 32 x 32, 64 of them to train on."""
    random = np.random.default_rng(0)
    raw = RawData(
        values=ArrayValues(random.integers(0, 256, (96, 3, 32, 32), dtype=np.uint8)),
        targets=np.arange(96) % 4,
        target=TargetSpec("class", tuple("abcd")),
        preprocess=ImagePreprocess((3, 32, 32), "RGB"),
        sources=[str(row) for row in range(96)],
        bad=[],
    )
    shares = SplitConfig(train=64 / 96, validation=16 / 96, test=16 / 96)
    return build_splits(raw, shares, CleanConfig(), None, True, 0, None)


def build(model: ModelConfig, data: DataSplits) -> Classification:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return classification.Config().build(data.spec, Modules(model))


def plain_loop(start: nn.Module, data: DataSplits, train: Mapping[str, Any], schedule: str) -> nn.Module:
    """Return the model after a loop as anyone writes it."""
    model, epochs, size = copy.deepcopy(start), train["epochs"], train["batch_size"]
    optimizer = OPTIMIZERS[train["optimizer"]](model)
    plan = BatchPlan(len(data.train), size, seed=0)
    steps = epochs * plan.steps_per_epoch
    scheduler = LambdaLR(
        optimizer, lambda step: 0.5 * (1 + math.cos(math.pi * step / steps)) if schedule == "cosine" else 1.0
    )
    for epoch in range(epochs):
        model.train()
        for step in range(plan.steps_per_epoch):
            batch = data.train.__getitems__(Draw(epoch, plan.indices(epoch, step)))
            loss = functional.cross_entropy(model(batch["image"]), batch["target"])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            scheduler.step()
    return model


def assert_equal_bits(model: nn.Module, expected: nn.Module, start: nn.Module) -> None:
    assert weights_digest(model) != weights_digest(start)
    for name, value in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_digits_mlp(
    digit_images: DataSplits, fit: Fit, tmp_path: Path, optimizer: str, schedule: str
) -> None:
    task = build(mlp.Config(), digit_images)
    start = copy.deepcopy(task.roles()["model"])
    train = RECIPES[optimizer] | {"epochs": 2, "batch_size": 64, "schedule": schedule}
    expected = plain_loop(start, digit_images, train, schedule)
    fit(task, digit_images, train, tmp_path / "run")
    assert_equal_bits(task.roles()["model"], expected, start)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resnet20(random_images: DataSplits, fit: Fit, tmp_path: Path, optimizer: str, schedule: str) -> None:
    task = build(resnet.Config(depth=20), random_images)
    start = copy.deepcopy(task.roles()["model"])
    train = RECIPES[optimizer] | {"epochs": 2, "batch_size": 16, "schedule": schedule}
    expected = plain_loop(start, random_images, train, schedule)
    fit(task, random_images, train, tmp_path / "run")
    assert_equal_bits(task.roles()["model"], expected, start)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_accumulation_changes_nothing(
    digit_images: DataSplits, fit: Fit, tmp_path: Path, optimizer: str
) -> None:
    models = []
    for parts in (1, 4):
        task = build(mlp.Config(activation="tanh"), digit_images)
        train = RECIPES[optimizer] | {"epochs": 1, "batch_size": 64, "accumulate": parts}
        progress = fit(task, digit_images, train, tmp_path / f"run{parts}")
        assert progress.step == -(-len(digit_images.train) // 64)
        models.append(task.roles()["model"])
    for whole, accumulated in zip(*(model.parameters() for model in models), strict=True):
        assert (whole - accumulated).abs().max() <= 1e-6 * whole.abs().max()
