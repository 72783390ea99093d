"""What strategies can't do is refused when the recipe is read."""

from __future__ import annotations

from typing import Any

import pytest

from fmdist import component, stages
from fmdist.errors import CapabilityError, DependencyMissing, RecipeError
from fmdist.training.scaling import ScalingConfig

RECIPE: dict[str, Any] = {
    "name": "one",
    "data": {"kind": "digits"},
    "model": {"kind": "cnn"},
    "task": {"kind": "classification"},
}
GAN: dict[str, Any] = {
    "data": {"kind": "digits", "normalize": False},
    "model": {"kind": "gan"},
    "task": {"kind": "adversarial", "loss": "wgan_gp"},
}


def load(scaling: dict[str, Any], train: dict[str, Any] | None = None, **rest: Any) -> None:
    stages.load_recipe({**RECIPE, "train": train or {}, "scaling": scaling, **rest})


@pytest.mark.parametrize(
    ("scaling", "train", "field"),
    [
        ({"strategy": "zero2", "workers": [1, 2]}, {}, "scaling.workers"),
        ({"strategy": "zero2", "workers": "auto"}, {}, "scaling.workers"),
        ({"strategy": "zero1"}, {"precision": "fp16"}, "train.precision"),
        ({"strategy": "fsdp"}, {"compile": True}, "train.compile"),
        ({"strategy": "zero1"}, {"non_finite": "skip"}, "train.non_finite"),
        ({"strategy": "zero3"}, {"ema": {}}, "train.ema"),
        ({"strategy": "fsdp"}, {"ema": {}}, "train.ema"),
        ({"strategy": "zero3", "activation_checkpointing": True}, {}, "scaling.activation_checkpointing"),
        ({"strategy": "zero1"}, {"optimizer": "Adafactor"}, "train.optimizer"),
        (
            {"strategy": "fsdp"},
            {"phases": {"model": {"optimizer": "Adagrad"}}},
            "train.phases.model.optimizer",
        ),
    ],
)
def test_what_a_strategy_cannot_do_names_its_field(
    scaling: dict[str, Any], train: dict[str, Any], field: str
) -> None:
    with pytest.raises(CapabilityError) as caught:
        load(scaling, train)
    assert str(caught.value).startswith(f"{field}: strategy '{scaling['strategy']}' can't do this")
    assert "allowed" in str(caught.value)
    load({**scaling, "strategy": "ddp", "activation_checkpointing": False}, train)


@pytest.mark.parametrize("strategy", ["zero1", "zero2", "zero3", "fsdp"])
def test_a_penalty_on_gradients_is_refused_with_shards(strategy: str) -> None:
    with pytest.raises(CapabilityError, match=r"wgan_gp.*differentiates twice"):
        load({"strategy": strategy}, **GAN)
    load({"strategy": strategy}, **{**GAN, "task": {"kind": "adversarial"}})


def test_zero_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(component, "missing", lambda extra: [extra] if extra == "deepspeed" else [])
    with pytest.raises(DependencyMissing, match=r"pip install 'fmdist\[deepspeed\]'"):
        load({"strategy": "zero2"})
    load({"strategy": "fsdp"})


@pytest.mark.parametrize(
    ("scaling", "said"),
    [
        ({"offload": "cpu"}, "offload works with strategies zero1"),
        ({"offload": "cpu", "strategy": "fsdp"}, "not fsdp"),
        ({"offload": "nvme", "strategy": "zero3"}, "cpu"),
        ({"gradient_compression": "fp16", "strategy": "fsdp"}, "works with strategy ddp only"),
        ({"workers": [3, 2]}, "must not fall"),
        ({"workers": 0}, "scaling.workers"),
        ({"workers": "all"}, "scaling.workers"),
        ({"strategy": "zero4"}, "zero3"),
    ],
)
def test_parts_that_do_not_go_together_are_mistakes(scaling: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load(scaling)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("workers", "least", "most", "elastic"),
    [(3, 3, 3, False), ("auto", 1, None, True), ([2, 4], 2, 4, True), ([2, 2], 2, 2, False)],
)
def test_numbers_of_workers(workers: Any, least: int, most: int | None, elastic: bool) -> None:
    config = stages.load_recipe({**RECIPE, "scaling": {"workers": workers}}).scaling
    assert isinstance(config, ScalingConfig)
    assert (config.least, config.most, config.elastic) == (least, most, elastic)
