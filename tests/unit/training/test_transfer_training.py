"""Transfer learning: what is trained, how fast, and that a whole run keeps its promises."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fmdist import stages, storage
from fmdist.contracts import DataSpec, InputSpec
from fmdist.errors import CapabilityError, CheckpointError
from fmdist.models import cnn, resnet, transformer_encoder, vit
from fmdist.models.base import ModelConfig
from fmdist.stages.modules import open_task
from fmdist.tasks import regression
from fmdist.training.adapters import adapter_targets, merge_adapters
from fmdist.training.config import TrainConfig
from fmdist.training.layers import layers
from fmdist.training.optim import build_optimizer
from fmdist.training.transfer import Transfer
from fmdist.training.transfer_config import LoraConfig
from tests.faults.rig import outcome, small_recipe, train_until
from tests.unit.training.transfer_rig import ABC, IMAGE, NET, classes, configured, make, state, values


def restricted(net: ModelConfig, spec: DataSpec = ABC, **fields: Any) -> nn.Module:
    task, rebuild = make(spec, net)
    made = Transfer(configured(**fields), task, rebuild, 0)
    made.adapt()
    made.restrict()
    return task.roles()["model"]


def shapes(found: list[list[nn.Parameter]]) -> list[int]:
    return [len(layer) for layer in found]


def test_layers_are_counted_as_people_count_them() -> None:
    images = classes("a", "b", inputs=IMAGE)
    tokens = classes("a", "b", inputs=(InputSpec("text", (None,), "int64", 9, 8),))
    assert shapes(layers(NET.build(ABC, 3))) == [4, 4, 2], "linear with its normalization, and the head"
    assert shapes(layers(cnn.Config(channels=(4, 8), blocks=1).build(images, 2))) == [3, 3, 2]
    assert shapes(layers(vit.Config(width=8, depth=3).build(images, 2))) == [4, 12, 12, 14, 2]
    assert len(layers(resnet.Config(depth=20).build(images, 2))) == 1 + 9 + 1
    encoder = transformer_encoder.Config(width=8, heads=2, layers=3)
    assert len(layers(encoder.build(tokens, 2))) == 1 + 3 + 1
    wrapped, _ = make(values(0.0), task=regression.Config())
    assert shapes(layers(wrapped.roles()["model"])) == [4, 4, 2]


def test_every_parameter_is_in_a_layer() -> None:
    module = vit.Config(width=8, depth=2).build(classes("a", "b", inputs=IMAGE), 2)
    counted = [parameter for layer in layers(module) for parameter in layer]
    assert list(map(id, counted)) == list(map(id, module.parameters()))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lower_layers_learn_more_slowly(weight_decay: float) -> None:
    module = restricted(NET, lr_decay=0.5)
    train = TrainConfig.model_validate({"lr": 0.1, "weight_decay": weight_decay, "optimizer": "SGD"})
    optimizer = build_optimizer(module, train, None)
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    found = {name.partition(".")[0]: rates[id(value)] for name, value in module.named_parameters()}
    assert found == pytest.approx({"1": 0.025, "2": 0.025, "4": 0.05, "5": 0.05, "7": 0.1})
    assert len(rates) == sum(len(group["params"]) for group in optimizer.param_groups) == 10
    assert optimizer.param_groups[0]["lr"] == 0.1
    decays = {
        value.ndim: group["weight_decay"] for group in optimizer.param_groups for value in group["params"]
    }
    assert decays == {1: 0.0, 2: weight_decay}


def test_frozen_parameters_and_their_statistics_stay() -> None:
    module = restricted(NET, freeze=["1.*", "2.*"])
    before = {name: value.clone() for name, value in module.state_dict().items()}
    train = TrainConfig.model_validate({"lr": 0.1, "weight_decay": 0.1, "optimizer": "SGD"})
    optimizer = build_optimizer(module, train, None)
    for _ in range(2):
        module.train()
        module(torch.randn(8, 5, generator=torch.Generator().manual_seed(0))).square().sum().backward()
        optimizer.step()
    moved = {name for name, value in module.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if not name.startswith(("1.", "2."))}


@pytest.mark.parametrize(
    ("freeze", "problem"),
    [
        (["feature.*"], r"transfer\.freeze: the pattern matches no parameter"),
        (["1.wieght"], "Did you mean '1.weight'"),
        (["*"], "nothing is left to train"),
    ],
)
def test_freezing_all_or_nothing_is_refused(freeze: list[str], problem: str) -> None:
    with pytest.raises(CapabilityError, match=problem):
        restricted(NET, freeze=freeze)


VIT = vit.Config(width=8, depth=2, patch_size=8)
LORA = {"targets": ["blocks.*.query_key_value", "blocks.*.mlp.*", "patches"], "rank": 2, "alpha": 4}


def test_adapters_change_nothing_at_first_and_merge_into_plain_modules() -> None:
    spec = classes("a", "b", inputs=IMAGE)
    plain = make(spec, VIT)[0].roles()["model"]
    module = restricted(VIT, spec, lora=LORA)
    images = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.equal(module(images), plain(images))
    trained = [name for name, value in module.named_parameters() if value.requires_grad]
    assert {"head.weight", "head.bias"} < set(trained)
    assert all("lora_" in name or name.startswith("head.") for name in trained)
    optimizer = torch.optim.SGD([value for value in module.parameters() if value.requires_grad], lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        module(images).square().sum().backward()
        optimizer.step()
    taught = module.eval()(images)
    merge_adapters(module)
    torch.testing.assert_close(module(images), taught)
    assert [type(part) for part in module.modules()] == [type(part) for part in plain.modules()]
    assert module.state_dict().keys() == plain.state_dict().keys()
    assert not torch.equal(module(images), plain(images))
    change = module.get_parameter("blocks.0.mlp.0.weight") - plain.get_parameter("blocks.0.mlp.0.weight")
    assert int(torch.linalg.matrix_rank(change, rtol=1e-4)) <= 2
    for name in ("blocks.0.projection.weight", "norm.weight", "class_token"):
        assert torch.equal(module.get_parameter(name), plain.get_parameter(name))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.attention = nn.MultiheadAttention(5, 1)
        self.cell = nn.LSTM(5, 5)
        self.head = nn.Linear(5, 3)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("second", r"second \(shares its weights"),
        ("attention.out_proj", r"attention.out_proj \(inside a layer"),
        ("cell", r"cell \(LSTM\)"),
        ("fist", r"the pattern matches no layer.*Did you mean 'first'"),
        ("head", r"the pattern matches no layer"),
    ],
)
def test_layers_that_can_have_no_adapter_are_named(target: str, reason: str) -> None:
    with pytest.raises(CapabilityError, match=reason):
        adapter_targets(Tied(), LoraConfig(targets=(target,)), ["head.weight", "head.bias"])


# Whole runs.

SHIFTED = {r"^7\.": "9.", r"^5\.": "6.", r"^4\.": "5."}
"""From the source's names to those of the same model with dropout after each layer, in this order."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of digits to start from."""
    folder = tmp_path_factory.mktemp("source") / "run"
    model = {"kind": "mlp", "hidden": [16, 8], "norm": "batch"}
    stages.train(small_recipe({"epochs": 1}, model=model), output=folder)
    return folder


def started_from(source: Path, train: Mapping[str, Any] | None = None, **transfer: Any) -> dict[str, Any]:
    model = {"kind": "mlp", "hidden": [16, 8], "norm": "batch", "dropout": 0.1}
    return {
        **small_recipe(train, model=model, data={"split": {"seed": 5}}),
        "transfer": {"init_from": str(source), "rename": SHIFTED} | transfer,
    }


@pytest.mark.slow
def test_a_run_begins_where_another_ended_and_says_so(run: Path, tmp_path: Path) -> None:
    recipe = started_from(run, {"epochs": 1, "lr": 1e-9, "optimizer": "SGD"})
    stages.train(recipe, output=tmp_path / "run")
    record = storage.read_json(tmp_path / "run" / "run.json")["transfer"]
    assert record["init_from"] == str(run)
    assert record["loaded"] == 16
    source, task = open_task(run).roles()["model"], open_task(tmp_path / "run").roles()["model"]
    for ours, theirs in ((1, 1), (5, 4), (9, 7)):
        torch.testing.assert_close(
            task.get_parameter(f"{ours}.weight"), source.get_parameter(f"{theirs}.weight")
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "wish",
    [
        {"freeze": ["1.*", "2.*"], "lr_decay": 0.5},
        {"lora": {"targets": ["1", "5"], "rank": 2, "dropout": 0.1}},
    ],
    ids=["frozen", "adapters"],
)
def test_resuming_is_exact_and_needs_no_source(run: Path, tmp_path: Path, wish: dict[str, Any]) -> None:
    source = tmp_path / "weights.safetensors"
    save_file({name: value.contiguous() for name, value in state(open_task(run)).items()}, source)
    recipe = started_from(source, {"ema": {"decay": 0.9}, "weight_decay": 0.1}, **wish)
    stages.train(recipe, output=tmp_path / "whole")
    train_until(7, signal.SIGTERM, recipe, tmp_path / "parts")
    source.unlink()
    before = storage.read_json(tmp_path / "parts" / "run.json")["transfer"]
    stages.train(recipe, output=tmp_path / "parts")
    assert outcome(tmp_path / "parts") == outcome(tmp_path / "whole")
    assert storage.read_json(tmp_path / "parts" / "run.json")["transfer"] == before
    scores = storage.read_json(tmp_path / "parts" / "evaluation" / "test.json")
    assert stages.evaluate(tmp_path / "parts")["metrics"] == pytest.approx(scores["metrics"])
    best = next((tmp_path / "parts" / "checkpoints").glob("*-evaluated"))
    held = [load_file(best / f"{prefix}model.safetensors")["2.running_mean"] for prefix in ("", "ema.")]
    kept = state(open_task(run))["2.running_mean"]
    assert all(torch.equal(value, kept) for value in held), "no statistics of frozen layers drift"


@pytest.mark.slow
def test_a_run_with_adapters_is_a_source_and_predicts(run: Path, tmp_path: Path) -> None:
    recipe = started_from(run, {"epochs": 1}, lora={"targets": ["1"], "rank": 2})
    stages.train(recipe, output=tmp_path / "first")
    again = started_from(tmp_path / "first", {"epochs": 1, "lr": 1e-9, "optimizer": "SGD"}, rename={})
    stages.train(again, output=tmp_path / "second")
    first, second = (state(open_task(tmp_path / name)) for name in ("first", "second"))
    assert first.keys() == second.keys()
    np.testing.assert_allclose(first["1.weight"], second["1.weight"], atol=1e-6)
    assert not torch.equal(first["1.weight"], state(open_task(run))["1.weight"])


def test_a_source_that_does_not_fit_leaves_no_run(run: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="don't fit the model"):
        stages.train(started_from(run, rename={}), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()
