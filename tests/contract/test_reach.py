"""What the contract carries beyond today's tasks: ragged targets, an online source, a delayed copy."""

from __future__ import annotations

import copy
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fmdist.contracts import Batch, Dataset, DataSpec, Draw, LossOut, Phase, Roles
from fmdist.data import digits
from fmdist.data.plan import BatchPlan
from fmdist.data.raw import Rows
from fmdist.data.splits import DataSplits, Samples
from fmdist.errors import Interrupted
from fmdist.metrics import MeanSquaredError, MetricCollection
from fmdist.training.checkpoint import weights_digest

if TYPE_CHECKING:
    from tests.conftest import Fit

DECAY = 0.9
TRAIN = {"epochs": 2, "batch_size": 16, "optimizer": "SGD", "lr": 1e-2, "options": {}, "trackers": ()}


class Episodes:
    """An online source: the module that is being trained decides what is seen, so nothing can be stored.

    A sample's target is a list: as many rewards, float32 (L,), as its start says.
    """

    def __init__(self, like: Samples, policy: nn.Module) -> None:
        self.targets = np.zeros((64, 1), np.float32)
        self.sources: Sequence[str] = []
        self._like = like
        self._policy = policy
        self.made: list[tuple[int, bytes]] = []

    def __len__(self) -> int:
        return len(self.targets)

    def __getitems__(self, draw: Draw) -> Batch:
        self.made.append((draw.epoch, draw.indices.tobytes()))
        random = np.random.default_rng([draw.epoch, *draw.indices])
        state = torch.from_numpy(random.random((len(draw.indices), 1, 8, 8), dtype=np.float32))
        with torch.no_grad():
            value = self._policy(state).squeeze(1)
        rewards = [value[row] + torch.arange(1.0 + key % 3) for row, key in enumerate(draw.indices)]
        return {"image": state, "target": rewards, "index": torch.from_numpy(draw.indices)}

    def raw(self, indices: Rows) -> Any:
        return self._like.raw(indices)

    def plain(self) -> Samples:
        return self._like


class Delayed:
    """A module learns from rewards and from a copy of itself that follows slowly (Mnih et al. 2015)."""

    primary: tuple[str, Literal["max", "min"]] = ("error", "min")

    def __init__(self, spec: DataSpec) -> None:
        self.spec = spec
        self.inputs = spec.inputs
        self.losses = 0
        self.stop_at: int | None = None
        with torch.random.fork_rng():
            torch.manual_seed(0)
            online = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
        self._roles: dict[str, nn.Module] = {"online": online, "delayed": copy.deepcopy(online)}

    def roles(self) -> dict[str, nn.Module]:
        return self._roles

    def phases(self) -> Sequence[Phase]:
        return (Phase("online", self.loss, after=self.follow),)

    def loss(self, roles: Roles, batch: Batch, generator: torch.Generator) -> LossOut:
        self.losses += 1
        if self.losses == self.stop_at:
            signal.raise_signal(signal.SIGTERM)
        with torch.no_grad():
            later = roles["delayed"](batch["image"]).squeeze(1)
        wanted = torch.stack([rewards.sum() for rewards in batch["target"]]) + 0.5 * later
        loss = (roles["online"](batch["image"]).squeeze(1) - wanted).square().sum()
        return LossOut(loss, len(wanted))

    def follow(self, roles: Roles) -> None:
        with torch.no_grad():
            for mine, its in zip(roles["delayed"].parameters(), roles["online"].parameters(), strict=True):
                mine.lerp_(its, 1 - DECAY)

    def count(self, batch: Batch) -> float:
        return len(batch["image"])

    def served(self, roles: Roles) -> nn.Module:
        return roles["online"]

    def metrics(self) -> MetricCollection:
        return MetricCollection({"error": Squared()})

    def decoding(self) -> dict[str, Any]:
        return {"rule": "value", "inputs": ["image"], "names": ["value"]}

    def baseline(self, train: Dataset, part: Dataset) -> NDArray[np.float32]:
        return np.zeros((len(part), 1), np.float32)

    def sample_weights(self, targets: NDArray[Any]) -> None:
        return None


class Squared(MeanSquaredError):
    def update(self, preds: Tensor, target: Tensor) -> None:
        super().update(preds.squeeze(1), target.float())


@pytest.fixture(scope="module")
def data() -> DataSplits:
    return digits.Config().build(seed=0)


def online(data: DataSplits, task: Delayed) -> tuple[DataSplits, Episodes]:
    source = Episodes(data.train, task.roles()["online"])
    return replace(data, train=source), source


def by_hand(data: DataSplits) -> dict[str, nn.Module]:
    """Return the roles after two epochs in the order of one batch plan, in plain torch."""
    task = Delayed(data.spec)
    splits, source = online(data, task)
    roles = task.roles()
    optimizer = torch.optim.SGD(roles["online"].parameters(), lr=1e-2)
    plan = BatchPlan(len(source), 16, seed=0)
    for epoch in range(2):
        for position in range(plan.steps_per_epoch):
            batch = splits.train.__getitems__(Draw(epoch, plan.indices(epoch, position)))
            out = task.loss(roles, batch, torch.Generator())
            optimizer.zero_grad()
            torch.autograd.backward(out.loss_sum / out.count)
            optimizer.step()
            for mine, its in zip(roles["delayed"].parameters(), roles["online"].parameters(), strict=True):
                mine.data = DECAY * mine.data + (1 - DECAY) * its.data
    return roles


def test_a_delayed_copy_learns_from_an_online_source_with_ragged_targets(
    data: DataSplits, fit: Fit, tmp_path: Path
) -> None:
    task = Delayed(data.spec)
    splits, source = online(data, task)
    progress = fit(task, splits, TRAIN, tmp_path / "run")
    assert (progress.step, task.losses, len(source.made)) == (8, 8, 8)
    expected = by_hand(data)
    for role, module in task.roles().items():
        for name, value in module.state_dict().items():
            torch.testing.assert_close(value, expected[role].state_dict()[name], rtol=1e-5, atol=1e-7)
    assert weights_digest(task.roles()["delayed"]) != weights_digest(task.roles()["online"])


def test_it_goes_on_bit_by_bit(data: DataSplits, fit: Fit, tmp_path: Path) -> None:
    whole, first, resumed = (Delayed(data.spec) for _ in range(3))
    fit(whole, online(data, whole)[0], TRAIN, tmp_path / "whole")
    first.stop_at = 6
    with pytest.raises(Interrupted, match="Saved at step 6"):
        fit(first, online(data, first)[0], TRAIN, tmp_path / "run")
    fit(resumed, online(data, resumed)[0], TRAIN, tmp_path / "run")
    assert resumed.losses == 2
    for role, module in resumed.roles().items():
        assert weights_digest(module) == weights_digest(whole.roles()[role])
