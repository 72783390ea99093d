"""Several heads over a shared trunk: which head learns what, and with which weight."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

from fmdist.contracts import Batch, DataSpec, InputSpec, TargetSpec
from fmdist.errors import CapabilityError
from fmdist.models import mlp
from fmdist.stages.modules import Modules
from fmdist.tasks.multi_task import Config, MultiTask

ROW = (InputSpec("row", (5,)),)
NAMES = ("u", "v", "w")
VALUES = DataSpec(ROW, TargetSpec("value", NAMES), 8, (), ((1.0, 2.0), (-5.0, 10.0), (0.0, 1.0)))
LABELS = DataSpec(ROW, TargetSpec("labels", NAMES), 8, (3, 4, 5))
HEADS = {"last": {"targets": ["w"], "weight": 3}, "rest": {"targets": ["v", "u"], "hidden": 4}}


def build(spec: DataSpec, **fields: Any) -> MultiTask:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Config.model_validate_json(json.dumps(fields)).build(spec, Modules(mlp.Config(hidden=(8,))))


def batch_of(spec: DataSpec) -> Batch:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(8, 3, generator=generator)
    if spec.target.kind == "labels":
        target = (target > 0).float()
    return {"row": torch.randn(8, 5, generator=generator), "target": target, "index": torch.arange(8)}


def test_heads_weigh_as_told() -> None:
    task, batch = build(VALUES, heads=HEADS), batch_of(VALUES)
    outputs = task.outputs(task.roles(), batch)
    error = ((outputs - batch["target"]) / torch.tensor([2.0, 10.0, 1.0])) ** 2
    expected = (3 * error[:, 2] + (error[:, 0] + error[:, 1]) / 2) / 4
    out = task.loss(task.roles(), batch, torch.Generator())
    torch.testing.assert_close(out.loss_sum, expected.sum())
    assert out.count == 8


@pytest.mark.parametrize("target", [0, 1, 2])
def test_a_target_trains_its_own_head_and_the_trunk(target: int) -> None:
    task, batch = build(VALUES, heads=HEADS), batch_of(VALUES)
    model = task.roles()["model"]
    torch.autograd.backward(task.outputs(task.roles(), batch)[:, target].sum())
    trained = [
        name for name, value in model.named_parameters() if value.grad is not None and bool(value.grad.any())
    ]
    heads = {name.split(".")[1] for name in trained if name.startswith("heads.")}
    assert heads == {f"{list(HEADS)[0 if target == 2 else 1]}_head"}
    assert "trunk.1.weight" in trained


def test_metrics_of_each_head_are_over_its_targets() -> None:
    task, batch = build(LABELS, heads=HEADS), batch_of(LABELS)
    outputs, target = task.outputs(task.roles(), batch).detach(), batch["target"]
    metrics = task.metrics()
    metrics.update(outputs[:3], target[:3])
    metrics.update(outputs[3:], target[3:])
    found = {name: float(value) for name, value in metrics.compute().items()}
    right = ((outputs > 0).float() == target).double()
    losses = functional.binary_cross_entropy_with_logits(outputs, target, reduction="none")
    loss = (3 * losses[:, 2] + losses[:, :2].mean(dim=1)).mean() / 4
    assert found == pytest.approx(
        {
            "loss": float(loss),
            "accuracy_last": float(right[:, 2].mean()),
            "accuracy_rest": float(right[:, :2].mean()),
        }
    )


def test_one_head_for_each_target_unless_told() -> None:
    assert set(build(LABELS).metrics()) == {"loss", "accuracy_u", "accuracy_v", "accuracy_w"}
    assert build(VALUES, primary="mse_v").primary == ("mse_v", "min")


def test_values_are_in_their_units() -> None:
    task = build(VALUES)
    model = task.roles()["model"]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    outputs = task.outputs(task.roles(), batch_of(VALUES))
    np.testing.assert_allclose(outputs.detach().numpy(), [[1.0, -5.0, 0.0]] * 8)


@pytest.mark.parametrize(
    ("heads", "problem"),
    [
        ({"one": {"targets": ["u", "v"]}}, "these have none or several: w"),
        ({"one": {"targets": ["u", "v"]}, "two": {"targets": ["v", "w"]}}, "these have none or several: v"),
        ({"one": {"targets": ["u", "v", "x"]}}, r"no such target, got 'x'; allowed: u, v, w"),
    ],
)
def test_heads_must_share_the_targets_out(heads: dict[str, Any], problem: str) -> None:
    with pytest.raises(CapabilityError, match=problem):
        build(LABELS, heads=heads)


def test_classes_are_refused() -> None:
    with pytest.raises(CapabilityError, match=r"task\.kind.*'classification'"):
        build(DataSpec(ROW, TargetSpec("class", NAMES), 8, (3, 4, 1)))
