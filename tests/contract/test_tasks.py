"""What every task kind promises; a new file in `fmdist/tasks` is tested here as soon as it exists."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmdist import component
from fmdist.contracts import Batch, DataSpec, InputSpec, TargetSpec, Task
from fmdist.errors import CapabilityError
from fmdist.metrics import MetricCollection
from fmdist.models import mlp
from fmdist.stages.modules import Modules
from fmdist.tasks.base import TaskConfig
from fmdist.tasks.decoding import decode
from fmdist.training.evaluation import as_floats, score
from tests.parts import Targets

SIZE = 48
ROW = (InputSpec("row", (5,)),)


def targets_of(name: str, size: int = SIZE) -> NDArray[Any]:
    """Return targets in which one class, and no label, is more frequent than the others."""
    random = np.random.default_rng(2)
    if name == "class":
        return np.asarray(random.choice(3, size, p=[0.2, 0.5, 0.3]))
    if name == "labels":
        return (random.random((size, 3)) < [0.2, 0.4, 0.7]).astype(np.float32)
    return random.normal([3, -50], [1, 20], (size, 2)).astype(np.float32)[:, : 1 if name == "value" else 2]


def spec_of(name: str) -> DataSpec:
    targets = targets_of(name)
    if name == "class":
        counts = tuple(np.bincount(targets, minlength=3).tolist())
        return DataSpec(ROW, TargetSpec("class", ("a", "b", "c")), SIZE, counts)
    if name == "labels":
        return DataSpec(ROW, TargetSpec("labels", ("x", "y", "z")), SIZE, tuple(targets.sum(0).astype(int)))
    moments = tuple(zip(targets.mean(0).tolist(), targets.std(0).tolist(), strict=True))
    return DataSpec(ROW, TargetSpec("value", ("u", "v")[: targets.shape[1]]), SIZE, (), moments)


TARGETS = ("class", "labels", "value", "values")
ALL = sorted(component.kinds("tasks"))
KINDS = [kind for kind in ALL if component.load(component.find("tasks", kind)).needs == "outputs"]
"""Those of models with outputs per sample; `tests.contract.test_families` has promises of all tasks."""


def build(kind: str, name: str) -> Task:
    config: TaskConfig = component.load(component.find("tasks", kind)).model_validate({})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return config.build(spec_of(name), Modules(mlp.Config(hidden=(8,))))


def accepted() -> Iterator[tuple[str, str]]:
    """Yield every kind with the targets that it learns."""
    for kind in KINDS:
        for name in TARGETS:
            try:
                build(kind, name)
            except CapabilityError:
                continue
            yield kind, name


CASES = list(accepted())
each_case = pytest.mark.parametrize(("kind", "name"), CASES)


def batch_of(name: str, rows: slice = slice(None)) -> Batch:
    values = torch.randn(SIZE, 5, generator=torch.Generator().manual_seed(3))
    targets = torch.from_numpy(targets_of(name))
    return {"row": values[rows], "target": targets[rows], "index": torch.arange(SIZE)[rows]}


def outputs_of(task: Task, batch: Batch) -> Tensor:
    for module in task.roles().values():
        module.eval()
    with torch.no_grad():
        outputs_BK: Tensor = task.served(task.roles())(batch["row"])
        return outputs_BK


def perfect_outputs(name: str) -> NDArray[np.float32]:
    targets = targets_of(name)
    if name == "class":
        return np.where(targets[:, None] == np.arange(3), 20, -20).astype(np.float32)
    return (40 * targets - 20).astype(np.float32) if name == "labels" else targets


def test_every_kind_learns_some_target() -> None:
    assert sorted({kind for kind, _ in CASES}) == KINDS


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in KINDS for name in TARGETS if (kind, name) not in CASES]
)
def test_other_targets_are_refused_with_a_way_out(kind: str, name: str) -> None:
    with pytest.raises(CapabilityError) as caught:
        build(kind, name)
    assert caught.value.problems[0].field == "task.kind"
    assert caught.value.problems[0].fix


@pytest.mark.parametrize("kind", ALL)
def test_config_survives_the_recipe(kind: str) -> None:
    config = component.load(component.find("tasks", kind)).model_validate({})
    written = json.loads(json.dumps(config.to_recipe()))
    assert written.pop("kind") == kind
    assert type(config).model_validate_json(json.dumps(written)) == config


@each_case
def test_roles_are_built_once(kind: str, name: str) -> None:
    task = build(kind, name)
    first, again = task.roles(), task.roles()
    assert first
    assert all(first[role] is again[role] for role in first)
    assert {phase.role for phase in task.phases()} <= set(first)


@each_case
def test_the_loss_is_a_sum_over_the_count(kind: str, name: str) -> None:
    task = build(kind, name)
    roles, generator = task.roles(), torch.Generator()
    for phase in task.phases():
        whole, first, second = (
            phase.loss(roles, batch_of(name, rows), generator.manual_seed(1))
            for rows in (slice(None), slice(0, 17), slice(17, None))
        )
        assert whole.loss_sum.requires_grad
        assert whole.count == pytest.approx(task.count(batch_of(name)))
        assert whole.count == pytest.approx(first.count + second.count)
        torch.testing.assert_close(whole.loss_sum, first.loss_sum + second.loss_sum)


@each_case
def test_every_parameter_of_a_phase_gets_a_gradient(kind: str, name: str) -> None:
    task = build(kind, name)
    for phase in task.phases():
        loss = phase.loss(task.roles(), batch_of(name), torch.Generator()).loss_sum
        torch.autograd.backward(loss)
        for parameter in task.roles()[phase.role].parameters():
            assert parameter.grad is not None
            assert parameter.grad.abs().max() > 0


@each_case
def test_training_lowers_the_loss(kind: str, name: str) -> None:
    task = build(kind, name)
    batch, generator = batch_of(name), torch.Generator()
    for phase in task.phases():
        optimizer = torch.optim.Adam(task.roles()[phase.role].parameters(), lr=0.05)
        losses = []
        for _ in range(60):
            out = phase.loss(task.roles(), batch, generator.manual_seed(0))
            optimizer.zero_grad()
            torch.autograd.backward(out.loss_sum / out.count)
            optimizer.step()
            losses.append(out.loss_sum.item() / out.count)
        assert losses[-1] < 0.8 * losses[0]


@each_case
def test_outputs_have_a_column_per_name(kind: str, name: str) -> None:
    task = build(kind, name)
    assert outputs_of(task, batch_of(name)).shape == (SIZE, len(task.spec.target.names))


@each_case
def test_metrics_of_halves_merge_to_those_of_the_whole(kind: str, name: str) -> None:
    task = build(kind, name)
    batch = batch_of(name)
    outputs, target = outputs_of(task, batch), batch["target"]

    def metrics_of(*parts: slice) -> MetricCollection:
        metrics = task.metrics()
        for rows in parts:
            metrics.update(outputs[rows], target[rows])
        return metrics

    whole = as_floats(metrics_of(slice(None)).compute())
    assert as_floats(metrics_of(slice(0, 11), slice(11, None)).compute()) == pytest.approx(whole, rel=1e-5)
    # As two ranks do: each sees its part, then the states are reduced.
    first, second = metrics_of(slice(0, 11)), metrics_of(slice(11, None))
    for key in whole:
        first[key].merge_state(second[key])
        assert float(first[key].compute()) == pytest.approx(whole[key], rel=1e-5), key
    assert all(np.isfinite(list(whole.values())))


@each_case
def test_the_mean_loss_is_a_metric(kind: str, name: str) -> None:
    task = build(kind, name)
    if len(task.phases()) > 1:
        pytest.skip("a task of several losses has no single one")
    batch = batch_of(name)
    out = task.phases()[0].loss(task.roles(), batch, torch.Generator())
    metrics = score(task, outputs_of(task, batch).numpy(), targets_of(name))
    assert metrics["loss"] == pytest.approx(out.loss_sum.item() / out.count, rel=1e-5)


@each_case
def test_the_primary_metric_prefers_the_truth(kind: str, name: str) -> None:
    task = build(kind, name)
    metric, mode = task.primary
    truth = score(task, perfect_outputs(name), targets_of(name))
    trivial = score(
        task, task.baseline(Targets(targets_of(name)), Targets(targets_of(name))), targets_of(name)
    )
    assert set(truth) == set(trivial)
    assert (truth[metric] > trivial[metric]) == (mode == "max")
    assert truth["loss"] < trivial["loss"]


@each_case
def test_the_baseline_sees_the_training_targets_only(kind: str, name: str) -> None:
    task = build(kind, name)
    outputs = task.baseline(Targets(targets_of(name)), Targets(targets_of(name, 7)))
    assert outputs.shape == (7, len(task.spec.target.names))
    assert outputs.dtype == np.float32
    assert (outputs == outputs[0]).all()


@each_case
def test_answers_use_the_names(kind: str, name: str) -> None:
    task = build(kind, name)
    rule = json.loads(json.dumps(task.decoding()))
    answers = decode(rule, outputs_of(task, batch_of(name)).numpy())
    assert len(answers) == SIZE
    assert json.loads(json.dumps(answers)) == answers
    named = [answer["values" if "values" in answer else "probabilities"] for answer in answers]
    assert all(tuple(values) == task.spec.target.names for values in named)


@each_case
def test_samples_are_drawn_evenly_by_default(kind: str, name: str) -> None:
    assert build(kind, name).sample_weights(targets_of(name)) is None
