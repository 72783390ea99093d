"""Interrupted and resumed training is bit-identical to uninterrupted training."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fmdist import stages, storage
from fmdist.errors import CheckpointError, Interrupted, TrainingError
from fmdist.training import evaluation
from fmdist.training.checkpoint import CheckpointStore
from fmdist.training.config import CheckpointConfig
from fmdist.training.snapshot import Trainables
from tests.faults.rig import load, newest, outcome, save, signal_at, small_recipe, steps, train_until

CNN = {"kind": "cnn", "channels": [4, 8], "blocks": 1, "dropout": 0.2}
AUGMENT = {"rotate": 10, "crop_padding": 1, "scale": {"min": 0.9, "max": 1.1}}
COMBINATIONS = {
    "sgd-momentum-accumulated": small_recipe(
        {
            "optimizer": "SGD",
            "options": {"momentum": 0.9, "nesterov": True},
            "accumulate": 2,
            "clip_norm": 1.0,
            "schedule": "cosine",
            "warmup_epochs": 0.5,
            "ema": {"decay": 0.9},
        }
    ),
    "cnn-augmented-mixup-workers": small_recipe(
        {"weight_decay": 0.05, "workers": 2, "schedule": "linear", "warmup_epochs": 1.2},
        task={"mixup": 0.4, "cutmix": 0.4, "label_smoothing": 0.1},
        model=CNN,
        data={"augment": AUGMENT},
    ),
    "cnn-average-augmented": small_recipe(
        {"ema": {"decay": 0.95}, "accumulate": 4, "batch_size": 256, "epochs": 3},
        model=CNN,
        data={"augment": AUGMENT},
    ),
    "balanced-stops-early": small_recipe(
        {"epochs": 4, "early_stopping": {"patience": 1, "min_delta": 0.9}, "evaluate_every_epochs": 1},
        task={"sampling": "balanced", "class_weights": "balanced"},
    ),
    "rare-evaluation": small_recipe(
        {"epochs": 3, "evaluate_every_epochs": 2, "checkpoint": {"every_epochs": 2, "keep": 1}}
    ),
}


def interrupt_and_finish(recipe: dict[str, Any], folder: Path, moments: Sequence[int]) -> None:
    for moment in moments:
        error = train_until(moment, signal.SIGTERM, recipe, folder)
        assert error.exit_code == 143
        assert storage.read_json(folder / "run.json")["status"] == "interrupted"
    stages.train(recipe, output=folder)


def test_interrupted_in_an_epoch_and_at_its_end(tmp_path: Path) -> None:
    recipe = COMBINATIONS["sgd-momentum-accumulated"]
    stages.train(recipe, output=tmp_path / "whole")
    # Counted from each start: at step 3, at step 10 (the epoch's last), at step 14.
    interrupt_and_finish(recipe, tmp_path / "parts", [3, 7, 4])
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in COMBINATIONS if not name.startswith("sgd")])
def test_every_ingredient_resumes(name: str, tmp_path: Path) -> None:
    recipe = COMBINATIONS[name]
    stages.train(recipe, output=tmp_path / "whole")
    interrupt_and_finish(recipe, tmp_path / "parts", [1, 3, 5])
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")
    if name == "balanced-stops-early":
        assert storage.read_json(tmp_path / "whole" / "run.json")["stopped_early"]


@pytest.mark.slow
def test_the_number_of_workers_may_change(tmp_path: Path) -> None:
    recipe = small_recipe(model=CNN, data={"augment": AUGMENT})
    stages.train(recipe, output=tmp_path / "whole")
    train_until(4, signal.SIGTERM, recipe, tmp_path / "parts")
    stages.train(recipe, output=tmp_path / "parts", overrides=["train.workers=2"])
    whole, parts = outcome(tmp_path / "whole"), outcome(tmp_path / "parts")
    assert parts == whole


def signal_in_evaluation(patch: pytest.MonkeyPatch, number: int) -> None:
    evaluate = evaluation.evaluate

    def signalled(*arguments: Any) -> Any:
        os.kill(os.getpid(), number)
        return evaluate(*arguments)

    patch.setattr("fmdist.training.loop.evaluate", signalled)


def test_a_signal_in_the_evaluation_saves_before_it(tmp_path: Path) -> None:
    recipe = small_recipe()
    stages.train(recipe, output=tmp_path / "whole")
    for _ in range(2):  # the second time nothing is new to save
        with pytest.MonkeyPatch.context() as patch:
            signal_in_evaluation(patch, signal.SIGINT)
            with pytest.raises(Interrupted, match="Saved before the evaluation at step 10") as caught:
                stages.train(recipe, output=tmp_path / "parts")
        assert caught.value.exit_code == 130
        assert newest(tmp_path / "parts").name == "step-0000000010"
    stages.train(recipe, output=tmp_path / "parts")
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_more_epochs_when_the_pending_evaluation_is_no_longer_due(tmp_path: Path) -> None:
    longer = small_recipe({"evaluate_every_epochs": 2, "epochs": 2})
    shorter = small_recipe({"evaluate_every_epochs": 2, "epochs": 1})
    stages.train(longer, output=tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        signal_in_evaluation(patch, signal.SIGTERM)
        with pytest.raises(Interrupted):
            stages.train(shorter, output=tmp_path / "parts")
    stages.train(longer, output=tmp_path / "parts")
    whole, parts = outcome(tmp_path / "whole"), outcome(tmp_path / "parts")
    assert len(parts["metrics"]) == len(whole["metrics"]) + 1  # the shorter run's last step
    for name in ("tensors", "test", "run"):
        assert parts[name] == whole[name]


def test_a_second_sigint_ends_at_once(tmp_path: Path) -> None:
    # A shell's background jobs ignore it from the start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.MonkeyPatch.context() as patch:
            signal_at(patch, 4, signal.SIGINT, signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                stages.train(small_recipe(), output=tmp_path / "run")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert steps(tmp_path / "run") == []
    assert storage.read_json(tmp_path / "run" / "run.json")["status"] == "interrupted"


def test_more_epochs_equal_the_longer_run(tmp_path: Path) -> None:
    stages.train(small_recipe({"epochs": 3}), output=tmp_path / "whole")
    stages.train(small_recipe({"epochs": 1}), output=tmp_path / "parts")
    with pytest.raises(CheckpointError, match=r"the run is finished.*Raise train\.epochs"):
        stages.train(small_recipe({"epochs": 1}), output=tmp_path / "parts")
    stages.train(small_recipe({"epochs": 3}), output=tmp_path / "parts")
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")


def test_a_step_that_is_due_at_an_epoch_s_end_is_saved(tmp_path: Path) -> None:
    train = {"epochs": 3, "evaluate_every_epochs": 3}
    checkpoint = {"every_steps": 10, "every_epochs": 3, "keep": 9}
    stages.train(small_recipe(train | {"checkpoint": checkpoint}), output=tmp_path / "run")
    assert [int(path.name[5:15]) for path in steps(tmp_path / "run")] == [10, 20, 30]


def test_a_model_that_diverges_in_the_last_step_is_named(tmp_path: Path) -> None:
    train = {"batch_size": 2000, "optimizer": "SGD", "lr": 1e38, "epochs": 1}
    with pytest.raises(TrainingError, match="not finite: loss"):
        stages.train(small_recipe(train), output=tmp_path / "run")
    assert storage.read_json(tmp_path / "run" / "run.json")["status"] == "failed"


OPTIMIZERS = sorted(
    name
    for name, value in vars(torch.optim).items()
    if isinstance(value, type) and name not in ("Optimizer", "LBFGS", "SparseAdam", "Muon")
)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_exactly(name: str, tmp_path: Path) -> None:
    def learn(model: nn.Module, optimizer: Any, first: int, last: int) -> None:
        for step in range(first, last):
            inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            model(inputs).square().sum().backward()
            optimizer.step()

    def fresh() -> Trainables:
        torch.manual_seed(0)
        model = nn.Linear(4, 3)
        return Trainables(
            {"model": model}, {}, {"model": getattr(torch.optim, name)(model.parameters(), lr=0.01)}
        )

    store = CheckpointStore(tmp_path, "max", CheckpointConfig())
    whole, resumed = fresh(), fresh()
    learn(whole.roles["model"], whole.optimizers["model"], 0, 3)
    save(store, 3, whole, {}, None)
    saved = store.newest()
    assert saved is not None
    load(store, saved, resumed)
    for trainables in (whole, resumed):
        learn(trainables.roles["model"], trainables.optimizers["model"], 3, 6)
    for left, right in zip(
        whole.roles["model"].parameters(), resumed.roles["model"].parameters(), strict=True
    ):
        assert torch.equal(left, right)
