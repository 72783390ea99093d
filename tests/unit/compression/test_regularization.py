"""Masks that are learned: they reach the share, and what NNCF doesn't cover goes by magnitude."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fmdist.compression.passes import prune_weights
from fmdist.contracts import Draw, Task
from fmdist.errors import CapabilityError, CompressionError
from tests.unit.compression.benches import SPLITS, bench

STEPS = 400


def train(task: Task, settings: Mapping[str, Any], steps: int = STEPS) -> None:
    """A plain loop: AdamW by one learning rate, as ours is given."""
    assert settings["optimizer"] == "AdamW"
    roles, (phase,) = task.roles(), task.phases()
    roles[phase.role].train()
    masks = [name for name, _ in roles[phase.role].named_parameters() if "mask" in name]
    assert masks == sorted(masks)  # a run that is resumed finds its optimizer's state by position
    optimizer = torch.optim.AdamW(
        roles[phase.role].parameters(), lr=settings["lr"], weight_decay=settings["weight_decay"]
    )
    generator, random = torch.Generator(), np.random.default_rng(0)
    for _ in range(steps):
        rows = random.integers(len(SPLITS.train), size=64)
        out = phase.loss(roles, SPLITS.train.__getitems__(Draw(0, rows)), generator)
        optimizer.zero_grad()
        torch.autograd.backward(out.loss_sum / out.count)
        optimizer.step()
    roles[phase.role].eval()


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def zeros(value: Tensor) -> float:
    return float((value == 0).float().mean())


@pytest.mark.slow
def test_the_share_is_met_and_the_masks_chose() -> None:
    module = net()
    config = prune_weights.Config(method="regularization", sparsity=0.8, finetune=None)
    torch.manual_seed(0)
    outcome = config.reduce(bench(module, train_masks=train))
    weights = [module[1].weight, module[3].weight]
    assert zeros(torch.cat([value.flatten() for value in weights])) == pytest.approx(0.8, abs=1e-3)
    # Nothing but zeros is left of the masks, and the smallest weights aren't the ones that went.
    assert not [name for name, _ in module.named_parameters() if "mask" in name]
    assert module(torch.randn(3, 1, 8, 8)).shape == (3, 10)
    kept = torch.cat([value[value != 0].abs() for value in weights])
    assert len(kept) == round(0.2 * (64 * 32 + 320))
    assert {row["method"] for row in outcome.coverage["changed"]} == {"regularization"}
    right = module(SPLITS.test.__getitems__(Draw(0, np.arange(200)))["image"]).argmax(1)
    assert float((right == torch.from_numpy(SPLITS.test.targets[:200])).float().mean()) > 0.75


@pytest.mark.slow
def test_recurrent_and_ignored_layers() -> None:
    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.LSTM(8, 16, batch_first=True)
            self.middle, self.head = nn.Linear(16, 32), nn.Linear(32, 10)

        def forward(self, x_BCHW: Tensor) -> Tensor:
            outputs: Tensor = self.head(self.middle(self.layer(x_BCHW[:, 0])[0][:, -1]).relu())
            return outputs

    torch.manual_seed(0)
    module: Any = Reads()
    config = prune_weights.Config(method="regularization", sparsity=0.5, finetune=None, ignore=("head",))
    outcome = config.reduce(bench(module, train_masks=train))
    assert zeros(module.head.weight) == 0
    assert zeros(module.middle.weight) == pytest.approx(0.5, abs=0.01)
    assert zeros(module.layer.weight_hh_l0) == pytest.approx(0.5, abs=0.01)
    methods = {row["name"]: row["method"] for row in outcome.coverage["changed"]}
    assert methods == {"layer": "magnitude", "middle": "regularization"}
    assert [left["name"] for left in outcome.coverage["left"]] == ["head"]


def test_too_few_steps_are_told() -> None:
    config = prune_weights.Config(method="regularization", sparsity=0.8, finetune=None)
    with pytest.raises(CompressionError, match=r"far from the share of zeros, got 0\.\d+; allowed: 0\.8"):
        config.reduce(bench(net(), train_masks=lambda task, settings: train(task, settings, steps=20)))


def test_what_nncf_can_not_trace_is_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(64, 10)
            self.calls = 0

        def forward(self, x_BCHW: Tensor) -> Tensor:
            self.calls += 1
            if self.calls > 0:
                message = "not today"
                raise RuntimeError(message)
            outputs: Tensor = self.head(x_BCHW.flatten(1))
            return outputs

    config = prune_weights.Config(method="regularization", sparsity=0.8, finetune=None)
    with pytest.raises(CapabilityError, match=r"NNCF can't trace the model .*not today"):
        config.reduce(bench(Odd(), train_masks=train))


@pytest.mark.parametrize("settings", [{"pattern": "2:4"}, {"scope": "local"}, {"allocate": "sensitivity"}])
def test_regularization_learns_the_shares_itself(settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="leave pattern, allocate and scope out"):
        prune_weights.Config(method="regularization", **settings)
