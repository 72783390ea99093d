from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from fmdist.contracts import Batch, DataSpec, InputSpec, TargetSpec
from fmdist.errors import CapabilityError
from fmdist.models import mlp
from fmdist.stages.modules import Modules
from fmdist.tasks.regression import Config, Regression, Rescaled
from fmdist.training.evaluation import score
from tests.parts import Targets

SPEC = DataSpec(
    (InputSpec("row", (3,)),), TargetSpec("value", ("u", "v")), 40, (), ((10.0, 2.0), (-300.0, 50.0))
)
STD = torch.tensor([2.0, 50.0])


def build(spec: DataSpec = SPEC, **fields: Any) -> Regression:
    return Config.model_validate(fields).build(spec, Modules(mlp.Config(hidden=(4,))))


def batch_of(size: int = 10) -> Batch:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(size, 2, generator=generator) * 3 * STD + torch.tensor([10.0, -300.0])
    return {"row": torch.randn(size, 3, generator=generator), "target": target}


@pytest.mark.parametrize(
    ("fields", "torchs"),
    [
        ({"loss": "mse"}, functional.mse_loss),
        ({"loss": "l1"}, functional.l1_loss),
        ({"loss": "huber", "huber_delta": 0.7}, lambda a, b: functional.huber_loss(a, b, delta=0.7)),
    ],
)
def test_mean_loss_is_torchs_on_scaled_targets(fields: dict[str, Any], torchs: Any) -> None:
    task, batch = build(**fields), batch_of()
    out = task.loss(task.roles(), batch, torch.Generator())
    assert out.count == task.count(batch) == 10
    values = task.outputs(task.roles(), batch)
    torch.testing.assert_close(out.loss_sum / out.count, torchs(values / STD, batch["target"] / STD))


def test_outputs_start_near_the_targets_mean() -> None:
    values = build().outputs(build().roles(), batch_of(200))
    assert ((values.mean(0) - torch.tensor([10.0, -300.0])).abs() < STD).all()


def test_metrics_are_in_the_targets_units() -> None:
    target = np.array([[10, -300], [14, -400], [12, -350]], np.float32)
    metrics = score(build(), target + np.array([3, -4], np.float32), target)
    assert metrics["rmse"] == pytest.approx(np.sqrt((9 + 16) / 2))
    assert metrics["mae"] == pytest.approx(3.5)


@pytest.mark.parametrize("targets", [1, 2])
def test_r2_is_the_share_of_variance_explained(targets: int) -> None:
    spec = DataSpec(SPEC.inputs, TargetSpec("value", ("u", "v")[:targets]), 40, (), SPEC.moments[:targets])
    random = np.random.default_rng(0)
    target = random.normal(10, 2, (50, targets)).astype(np.float32)
    outputs = target + random.normal(0, 1, (50, targets)).astype(np.float32)
    expected = 1 - ((outputs - target) ** 2).sum(0) / ((target - target.mean(0)) ** 2).sum(0)
    assert score(build(spec), outputs, target)["r2"] == pytest.approx(expected.mean(), rel=1e-4)


def test_r2_of_large_targets_is_exact() -> None:
    target = 1e6 + np.arange(200, dtype=np.float32)[:, None].repeat(2, axis=1)
    outputs = target + np.where(np.arange(200) % 2, 10, -10).astype(np.float32)[:, None]
    assert score(build(), outputs, target)["r2"] == pytest.approx(1 - 100 / (200**2 - 1) * 12, rel=1e-6)


def test_the_baseline_is_the_mean() -> None:
    train = np.array([[1, 10], [3, 30]], np.float32)
    task = build()
    outputs = task.baseline(Targets(train), Targets(np.zeros((4, 2))))
    assert outputs.tolist() == [[2, 20]] * 4
    assert score(task, task.baseline(Targets(train), Targets(train)), train)["r2"] == pytest.approx(
        0, abs=1e-6
    )


def test_a_target_that_never_changes_is_not_divided_by_zero() -> None:
    spec = DataSpec(SPEC.inputs, TargetSpec("value", ("u",)), 40, (), ((5.0, 0.0),))
    task = build(spec)
    batch = batch_of() | {"target": torch.full((10, 1), 5.0)}
    assert torch.isfinite(task.loss(task.roles(), batch, torch.Generator()).loss_sum)


def test_scaling_is_part_of_the_model() -> None:
    rescaled = build().roles()["model"]
    row = torch.ones(1, 3)
    assert isinstance(rescaled, Rescaled)
    torch.testing.assert_close(rescaled(row), rescaled.model(row) * STD + torch.tensor([10.0, -300.0]))
    assert {"mean", "std"} <= set(rescaled.state_dict())


def test_classes_are_refused() -> None:
    spec = DataSpec(SPEC.inputs, TargetSpec("class", ("a", "b")), 40, (20, 20))
    with pytest.raises(
        CapabilityError, match=r"task\.kind.*of kind 'class'.*Use task\.kind 'classification'"
    ):
        build(spec)


def test_the_primary_metric_can_be_chosen() -> None:
    assert build().primary == ("rmse", "min")
    assert build(primary="r2").primary == ("r2", "max")
    with pytest.raises(CapabilityError, match="allowed: rmse, mae, r2, loss"):
        build(primary="accuracy")
