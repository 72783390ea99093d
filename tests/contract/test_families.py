"""What every family promises, whatever its task: no test here knows one by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_model

from fmdist import component
from fmdist.compression.config import BenchmarkConfig, CompressConfig
from fmdist.compression.passes import quantize
from fmdist.compression.pipeline import compress
from fmdist.compression.subject import Subject
from fmdist.data.splits import DataSplits
from fmdist.tasks import decoding
from fmdist.training.checkpoint import load_weights, weights_digest
from fmdist.training.evaluation import as_floats, confidence_interval, evaluate, runner, score
from tests.contract.families import Family, arrays, batch_of, find_family, pairs, trained

TOLERANCE = 1e-5
CPU = torch.device("cpu")
pytestmark = pytest.mark.slow

PAIRS = pairs()
FIRST = {task: (task, model) for task, model in reversed(PAIRS)}
INT8 = [pytest.param(pair, marks=[] if pair in FIRST.values() else [pytest.mark.sweep]) for pair in PAIRS]
"""One family a task is compressed in every test run, all of them in the sweep: each takes 20 s."""
QUICK = quantize.Config(ranges=("minmax",), bias_correction=("none",), accuracy_control=False)
FAST = BenchmarkConfig(samples=10, batch_size=2, max_seconds=0.1, torch_compile=False, memory=False)

_built: dict[str, DataSplits] = {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def family(request: pytest.FixtureRequest, folder: Path) -> Family:
    task, model = request.param
    return find_family(task, model, folder, _built)


def test_every_model_has_a_task_and_every_task_a_model() -> None:
    assert {model for _, model in PAIRS} == set(component.kinds("models"))
    assert {task for task, _ in PAIRS} == set(component.kinds("tasks"))


def test_phases_train_roles(family: Family) -> None:
    task = family.build()
    roles, again = task.roles(), task.roles()
    assert all(roles[role] is again[role] for role in roles)
    assert {phase.role for phase in task.phases()} <= set(roles)
    assert all(phase.every >= 1 for phase in task.phases())


def test_the_loss_is_a_sum_over_the_count(family: Family) -> None:
    task = family.build()
    roles = task.roles()
    for module in roles.values():
        module.eval()  # dropout and batch statistics are no sums over samples
    batch = batch_of(family.data.train)
    halves = [batch_of(family.data.train, rows) for rows in (slice(0, 3), slice(3, 8))]
    counts = [task.count(part) for part in (batch, *halves)]
    assert counts[0] == pytest.approx(counts[1] + counts[2])
    for phase in task.phases():
        outs = [
            phase.loss(roles, part, torch.Generator().manual_seed(seed))
            for seed, part in ((1, batch), (2, batch), (1, halves[0]), (1, halves[1]))
        ]
        assert outs[0].loss_sum.requires_grad
        assert outs[0].count == pytest.approx(counts[0])
        if torch.equal(outs[0].loss_sum, outs[1].loss_sum):  # else the loss draws from the generator
            torch.testing.assert_close(
                outs[0].loss_sum, outs[2].loss_sum + outs[3].loss_sum, rtol=1e-4, atol=1e-4
            )


def test_every_parameter_of_a_phase_gets_a_gradient(family: Family) -> None:
    task = family.build()
    roles = task.roles()
    for phase in task.phases():
        got: dict[str, float] = {}
        for start in range(0, 32, 8):
            roles[phase.role].zero_grad()
            batch = batch_of(family.data.train, slice(start, start + 8))
            out = phase.loss(roles, batch, torch.Generator().manual_seed(start))
            torch.autograd.backward(out.loss_sum)
            for name, parameter in roles[phase.role].named_parameters():
                if parameter.requires_grad:
                    assert parameter.grad is not None, name
                    got[name] = max(got.get(name, 0.0), float(parameter.grad.abs().max()))
        assert all(np.isfinite(list(got.values())))
        assert not [name for name, largest in got.items() if largest == 0]


def test_training_is_decided_by_the_seed(family: Family) -> None:
    first, again, other = family.build(3), family.build(3), family.build(4)
    losses = trained(first, family.data)
    assert losses == trained(again, family.data)
    assert losses != trained(other, family.data)


def test_weights_survive_a_file(family: Family, tmp_path: Path) -> None:
    task, other = family.build(0), family.build(9)
    trained(task, family.data)
    for role, module in task.roles().items():
        save_model(module, str(tmp_path / f"{role}.safetensors"))
        load_weights(other.roles()[role].eval(), tmp_path / f"{role}.safetensors")
    batch, rule = arrays(batch_of(family.data.test)), task.decoding()
    rows, again = (decoding.rows(rule, runner(t, t.roles(), CPU), batch) for t in (task, other))
    np.testing.assert_array_equal(rows, again)


def test_a_sample_does_not_depend_on_its_neighbours(family: Family) -> None:
    task = family.build()
    trained(task, family.data)
    rule, run = task.decoding(), runner(task, task.roles(), CPU)
    together = run(decoding.feed(rule, arrays(batch_of(family.data.test, slice(0, 4)))))
    for row in range(4):
        fed = decoding.feed(rule, arrays(batch_of(family.data.test, slice(row, row + 1))))
        alone = run(fed)[0]
        inside = tuple(slice(0, size) for size in alone.shape)
        assert np.abs(together[row][inside] - alone).max() <= TOLERANCE * np.abs(together).max()


def test_padding_changes_nothing(family: Family) -> None:
    task = family.build()
    free = [item.name for item in task.inputs if None in item.shape]
    if not free:
        pytest.skip("no free axis")
    trained(task, family.data)
    rule, run = task.decoding(), runner(task, task.roles(), CPU)
    # Short rows, so that padded ones stay within what a model with positions can take.
    fed = {
        name: value[:, :6] if name in free else value
        for name, value in decoding.feed(rule, arrays(batch_of(family.data.test))).items()
    }
    padded = {name: np.pad(value, ((0, 0), (0, 3))) if name in free else value for name, value in fed.items()}
    plain, other = run(fed), run(padded)
    inside = tuple(slice(0, size) for size in plain.shape)
    assert np.abs(other[inside] - plain).max() <= TOLERANCE * np.abs(plain).max()


def test_rows_are_scored_beside_the_baselines(family: Family) -> None:
    task, part = family.build(), family.data.validation
    trained(task, family.data)
    found = evaluate(task, task.roles(), part, 7, CPU)
    assert found is not None
    metrics, rows = found
    assert rows.dtype == np.float32
    assert len(rows) == len(part)
    assert np.isfinite(rows).all()
    assert task.primary[0] in metrics
    assert task.primary[1] in ("max", "min")
    assert all(np.isfinite(list(metrics.values())))
    assert score(task, rows, part.targets) == pytest.approx(metrics, rel=1e-4, abs=1e-6)
    interval = confidence_interval(task, rows, part.targets, seed=0)
    assert interval is None or interval[0] <= metrics[task.primary[0]] <= interval[1]
    baseline = task.baseline(family.data.train.plain(), part)
    assert baseline.dtype == np.float32
    assert baseline.shape == rows.shape
    assert set(score(task, baseline, part.targets)) == set(metrics)


def test_metrics_of_two_ranks_merge(family: Family) -> None:
    task, part = family.build(), family.data.validation
    found = evaluate(task, task.roles(), part, 64, CPU)
    assert found is not None
    rows, targets = torch.from_numpy(found[1]), torch.from_numpy(part.targets)
    first, second = task.metrics(), task.metrics()
    half = len(rows) // 2
    first.update(rows[:half], targets[:half])
    second.update(rows[half:], targets[half:])
    for name, value in found[0].items():
        first[name].merge_state(second[name])
        assert as_floats({name: first[name].compute()})[name] == pytest.approx(value, rel=1e-4, abs=1e-6), (
            name
        )


def test_answers_are_json(family: Family) -> None:
    task = family.build()
    rule = json.loads(json.dumps(task.decoding()))
    batch = arrays(batch_of(family.data.test, slice(0, 3)))
    answers = decoding.answer(
        rule, runner(task, task.roles(), CPU), {n: v for n, v in batch.items() if n != "target"}
    )
    assert len(answers) == 3
    assert json.loads(json.dumps(answers, allow_nan=False)) == answers


@pytest.mark.parametrize("family", INT8, indirect=True, ids=lambda pair: "-".join(pair))
def test_int8_runs_in_every_runtime_that_the_family_exports_to(family: Family, tmp_path: Path) -> None:
    task = family.build()
    trained(task, family.data)
    model = family.model_config
    passes = () if model.not_quantizable else (QUICK,)
    subject = Subject(
        name="family",
        task=task,
        export=family.export(task),
        splits=family.data,
        recipe={"name": "family", "seed": 0, "model": model.to_recipe()},
        source="runs/family",
        fingerprint=weights_digest(task.served(task.roles())),
    )
    # What three steps have taught is lost at once: the metric doesn't matter here.
    config = CompressConfig(passes=passes, max_drop=1e9, calibration_samples=16, benchmark=FAST)
    manifest = compress(subject, config, tmp_path / "artifact").manifest
    runtimes = {"openvino"} | ({"onnxruntime"} if model.onnx_route else set())
    assert set(manifest["models"]) == runtimes
    probed = {(row["runtime"], row["batch"], row["length"]) for row in manifest["parity"]}
    assert len(probed) == 2 * len(runtimes)
    if any(None in item.shape for item in task.inputs):
        assert len({length for _, _, length in probed}) == 2
    for runtime in runtimes if passes else ():
        if runtime not in manifest["passes"][0]["skipped"]:
            assert "int8" in manifest["models"][runtime]
            assert manifest["passes"][0]["coverage"][runtime]["changed_layers"] > 0
