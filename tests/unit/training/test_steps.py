"""What happens in a training step: guards, clipping, averages, precision, determinism, early stopping."""

from __future__ import annotations

import itertools
import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fmdist import storage
from fmdist.contracts import Batch, Context, LossOut, Roles, Task
from fmdist.data import digits
from fmdist.data.splits import DataSplits
from fmdist.errors import CapabilityError, TrainingError
from fmdist.models import mlp
from fmdist.tasks import classification
from fmdist.tasks.classification import Classification
from fmdist.training.checkpoint import weights_digest
from fmdist.training.config import EarlyStoppingConfig, TrainConfig
from fmdist.training.engine import engine
from fmdist.training.loop import Progress, _judge, step_seed

if TYPE_CHECKING:
    from tests.conftest import Fit

TRAIN: dict[str, Any] = {"epochs": 1, "batch_size": 128, "optimizer": "SGD", "lr": 0.1}
STEPS = 10
"""Steps of an epoch of `TRAIN`."""


@pytest.fixture(scope="module")
def data() -> DataSplits:
    return digits.Config().build(seed=0)


class Faulty(Classification):
    """Digits whose loss is multiplied by something at chosen calls, from 1."""

    def __init__(self, config: classification.Config, data: DataSplits, model: nn.Module) -> None:
        super().__init__(config, data.spec, model)
        self.factors: dict[int, float] = {}
        self.before: list[str] = []
        """Digest of the weights at the beginning of every step."""
        self.dtypes: set[torch.dtype] = set()
        self.deterministic: set[bool] = set()

    def loss(self, roles: Roles, batch: Batch, generator: torch.Generator) -> LossOut:
        self.before.append(weights_digest(self.roles()["model"]))
        self.deterministic.add(torch.are_deterministic_algorithms_enabled())
        out = super().loss(roles, batch, generator)
        return LossOut(out.loss_sum * self.factors.get(len(self.before), 1.0), out.count)

    def outputs(self, roles: Roles, batch: Batch) -> Tensor:
        if roles["model"].training:
            linear = self.roles()["model"][-1]  # type: ignore[index]
            handle = linear.register_forward_hook(lambda module, given, out: self.dtypes.add(out.dtype))
            outputs = super().outputs(roles, batch)
            handle.remove()
            return outputs
        return super().outputs(roles, batch)


def build(data: DataSplits, model: mlp.Config | None = None, **fields: Any) -> Faulty:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = (model or mlp.Config(hidden=(16,))).build(data.spec, 10)
    return Faulty(classification.Config.model_validate(fields), data, module)


def digest(task: Faulty) -> str:
    return weights_digest(task.roles()["model"])


def test_a_loss_that_is_not_finite_stops_before_the_update(
    data: DataSplits, fit: Fit, tmp_path: Path
) -> None:
    task = build(data)
    task.factors = {4: float("nan")}
    with pytest.raises(TrainingError, match=r"the loss of 'model' is not finite.*Lower train\.lr"):
        fit(task, data, TRAIN, tmp_path / "run")
    assert len(task.before) == 4
    assert digest(task) == task.before[3] != task.before[2]
    assert storage.read_json(tmp_path / "run" / "run.json")["status"] == "failed"


def test_an_infinite_gradient_stops_too(data: DataSplits, fit: Fit, tmp_path: Path) -> None:
    task = build(data)
    task.factors = {2: 1e36}  # a finite loss, whose gradients' squares are not
    with pytest.raises(TrainingError, match="the gradient norm of 'model' is not finite"):
        fit(task, data, TRAIN | {"clip_norm": 1.0}, tmp_path / "run")
    assert digest(task) == task.before[1]


def test_skipping_leaves_the_update_out(
    data: DataSplits, fit: Fit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = build(data)
    task.factors = {3: float("inf"), 6: float("nan")}
    with caplog.at_level(logging.WARNING):
        progress = fit(task, data, TRAIN | {"non_finite": "skip"}, tmp_path / "run")
    assert progress.step == STEPS
    changed = [old != new for old, new in itertools.pairwise([*task.before, digest(task)])]
    assert [number for number, moved in enumerate(changed, 1) if not moved] == [3, 6]
    assert caplog.text.count("skipped an update: the loss of 'model' is not finite") == 2
    assert all(torch.isfinite(value).all() for value in task.roles()["model"].state_dict().values())


@pytest.mark.parametrize(("faults", "stops"), [(3, False), (4, True)])
def test_too_many_skipped_in_a_row_stop(
    data: DataSplits, fit: Fit, tmp_path: Path, faults: int, stops: bool
) -> None:
    task = build(data)
    task.factors = dict.fromkeys([1, *range(4, 4 + faults)], float("nan"))
    train = TRAIN | {"non_finite": "skip", "max_skipped": 3}
    if stops:
        with pytest.raises(TrainingError, match="is not finite, 4 steps in a row"):
            fit(task, data, train, tmp_path / "run")
    else:
        assert fit(task, data, train, tmp_path / "run").step == STEPS


def test_clipping_limits_the_update(data: DataSplits, fit: Fit, tmp_path: Path) -> None:
    task = build(data)
    start = {name: value.clone() for name, value in task.roles()["model"].state_dict().items()}
    train = TRAIN | {"batch_size": len(data.train), "lr": 1.0, "clip_norm": 1e-3}
    fit(task, data, train, tmp_path / "run")
    moved = [value - start[name] for name, value in task.roles()["model"].state_dict().items()]
    assert float(torch.cat([part.flatten() for part in moved]).norm()) == pytest.approx(1e-3, rel=1e-3)
    first, *_ = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert first["grad_norm"] > 1e-2, "the norm before clipping is recorded"


def test_a_loose_limit_changes_nothing(data: DataSplits, fit: Fit, tmp_path: Path) -> None:
    free, loose = build(data), build(data)
    fit(free, data, TRAIN, tmp_path / "free")
    fit(loose, data, TRAIN | {"clip_norm": 1e6}, tmp_path / "loose")
    assert digest(free) == digest(loose)


def test_the_average_is_the_closed_form(data: DataSplits, fit: Fit, tmp_path: Path) -> None:
    checkpoints = {"every_steps": 1, "keep": 100}
    task = build(data, mlp.Config(hidden=(4,), norm="batch"))
    fit(task, data, TRAIN | {"ema": {"decay": 0.7}, "checkpoint": checkpoints}, tmp_path / "run")
    folders = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    assert len(folders) == STEPS
    weights = [load_file(str(folder / "model.safetensors")) for folder in folders]
    averaged = load_file(str(folders[-1] / "ema.model.safetensors"))
    for name in averaged.keys() & dict(task.roles()["model"].named_parameters()).keys():
        expected = 0.7 ** (STEPS - 1) * weights[0][name]
        for step in range(1, STEPS):
            expected = expected + 0.3 * 0.7 ** (STEPS - 1 - step) * weights[step][name]
        torch.testing.assert_close(averaged[name], expected, rtol=1e-5, atol=1e-6)
        assert not torch.equal(averaged[name], weights[-1][name])


def test_the_average_is_what_is_evaluated(data: DataSplits, fit: Fit, tmp_path: Path) -> None:
    slow = fit(build(data), data, TRAIN | {"ema": {"decay": 0.9999}}, tmp_path / "slow")
    free = fit(build(data), data, TRAIN, tmp_path / "free")
    assert slow.best is not None
    assert free.best is not None
    assert slow.best < free.best - 0.2, "an average that hardly moves is still near the beginning"


def test_bf16_computes_in_bf16_and_keeps_fp32_weights(data: DataSplits, fit: Fit, tmp_path: Path) -> None:
    task, full = build(data), build(data)
    fit(task, data, TRAIN | {"precision": "bf16"}, tmp_path / "bf16")
    fit(full, data, TRAIN, tmp_path / "fp32")
    assert (task.dtypes, full.dtypes) == ({torch.bfloat16}, {torch.float32})
    weights, expected = (made.roles()["model"].state_dict() for made in (task, full))
    for name, value in weights.items():
        assert value.dtype == torch.float32
        assert not torch.equal(value, expected[name])
        torch.testing.assert_close(value, expected[name], rtol=0.1, atol=0.02)


def test_fp16_needs_a_gpu(data: DataSplits, fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(CapabilityError, match=r"train\.precision: fp16 with loss scaling needs a GPU"):
        fit(build(data), data, TRAIN | {"precision": "fp16", "device": "cpu"}, tmp_path / "run")


@pytest.mark.parametrize("device", ["gpu", "xpu:7"])
def test_unknown_devices_are_refused(device: str, tmp_path: Path) -> None:
    config = TrainConfig.model_validate(TRAIN | {"device": device})
    with (
        pytest.raises(CapabilityError, match=r"train\.device.*allowed: auto, cpu"),
        engine(config, Context(), tmp_path),
    ):
        pass


def test_deterministic_mode_is_on_while_training_only(data: DataSplits, fit: Fit, tmp_path: Path) -> None:
    tasks = [build(data, mlp.Config(hidden=(16,), dropout=0.3)) for _ in range(2)]
    for number, task in enumerate(tasks):
        fit(task, data, TRAIN | {"deterministic": True}, tmp_path / str(number))
        assert task.deterministic == {True}
        assert not torch.are_deterministic_algorithms_enabled()
    assert digest(tasks[0]) == digest(tasks[1])


def test_the_seed_decides_the_run(data: DataSplits, fit: Fit, tmp_path: Path) -> None:
    tasks = [build(data, mlp.Config(hidden=(16,), dropout=0.3), mixup=0.2) for _ in range(3)]
    for number, (task, seed) in enumerate(zip(tasks, (5, 5, 6), strict=True)):
        torch.manual_seed(number)
        fit(task, data, TRAIN, tmp_path / str(number), seed=seed)
    assert digest(tasks[0]) == digest(tasks[1]) != digest(tasks[2])


def test_early_stopping_waits_for_its_patience(data: DataSplits, fit: Fit, tmp_path: Path) -> None:
    train = TRAIN | {"epochs": 50, "early_stopping": {"patience": 2, "min_delta": 1.0}}
    progress = fit(build(data), data, train, tmp_path / "run")
    assert (progress.epoch, progress.stopped_early) == (3, True)
    evaluated = [line for line in read_lines(tmp_path / "run" / "metrics.jsonl") if "accuracy" in line]
    best = max(line["accuracy"] for line in evaluated)
    assert progress.best == best, "the best is kept even if its improvement was too small to wait for"


def test_small_improvements_add_up(
    data: DataSplits, fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = iter([0.50, 0.51, 0.52, 0.53, 0.54, 0.54, 0.54, 0.54])
    monkeypatch.setattr(
        "fmdist.training.loop.evaluate", lambda *arguments: ({"accuracy": next(scores)}, None)
    )
    train = TRAIN | {"epochs": 20, "early_stopping": {"patience": 2, "min_delta": 0.015}}
    progress = fit(build(data), data, train, tmp_path / "run")
    assert (progress.epoch, progress.stopped_early) == (7, True), "0.52 and 0.54 count, each after two epochs"
    assert (progress.best, progress.reference) == (0.54, 0.54)


def test_a_checkpoint_from_before_there_was_a_reference_compares_with_its_best() -> None:
    task = cast(Task, SimpleNamespace(primary=("loss", "min")))
    config = TrainConfig(early_stopping=EarlyStoppingConfig(patience=9, min_delta=0.1))
    progress = Progress(best=0.5, stale=3)
    _judge({"loss": 0.45}, task, config, progress)
    assert (progress.stale, progress.reference, progress.best) == (4, None, 0.45)
    _judge({"loss": 0.3}, task, config, progress)
    assert (progress.stale, progress.reference, progress.best) == (0, 0.3, 0.3)


def test_improving_runs_are_not_stopped(data: DataSplits, fit: Fit, tmp_path: Path) -> None:
    train = TRAIN | {"epochs": 3, "lr": 0.02, "early_stopping": {"patience": 1}}
    progress = fit(build(data, primary="loss"), data, train, tmp_path / "run")
    assert (progress.epoch, progress.stopped_early, progress.stale) == (3, False, 0)


def test_a_metric_that_is_not_finite_ends_the_run(data: DataSplits, fit: Fit, tmp_path: Path) -> None:
    task = build(data, primary="loss")
    with torch.no_grad():
        task.roles()["model"][-1].bias.fill_(float("inf"))  # type: ignore[index]
    task.factors = dict.fromkeys(range(1, STEPS + 1), 0.0)
    train = TRAIN | {"non_finite": "skip", "max_skipped": 100}
    with pytest.raises(TrainingError, match="metrics are not finite: loss"):
        fit(task, data, train, tmp_path / "run")


@pytest.mark.slow
def test_compiled_training_agrees(
    data: DataSplits, fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor, "compile_threads", 1)
    plain, compiled = build(data), build(data)
    train = TRAIN | {"drop_last": True}
    fit(plain, data, train, tmp_path / "plain")
    fit(compiled, data, train | {"compile": True}, tmp_path / "compiled")
    expected = plain.roles()["model"].state_dict()
    assert sorted(expected) == sorted(
        load_file(str(next((tmp_path / "compiled").rglob("model.safetensors"))))
    )
    for name, value in compiled.roles()["model"].state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5)


def test_every_step_of_a_run_has_a_seed_of_its_own() -> None:
    seeds = [step_seed(7, *key) for key in itertools.product(range(60), repeat=2)]
    assert len(set(seeds)) == 60**2
    assert all(0 <= seed < 2**63 for seed in [*seeds, step_seed(2**63 - 1, 10**6, 10**6)])
    ones = sum(seed.bit_count() for seed in seeds) / len(seeds)
    assert ones == pytest.approx(31.5, abs=0.5), "as random bits have"


def test_runs_of_other_seeds_share_no_step_seed() -> None:
    seeds = [step_seed(*key) for key in itertools.product(range(20), repeat=3)]
    assert len(set(seeds)) == 20**3


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
