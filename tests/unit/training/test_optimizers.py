"""Optimizers by name, their options, weight decay, and the learning-rate schedules."""

from __future__ import annotations

import inspect
import itertools
import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from fmdist.training.config import TrainConfig
from fmdist.training.optim import build_optimizer, check_options, lr_factor, optimizer_class

STEPS = 20
SCHEDULES = ["constant", "cosine", "linear", "step", "exponential"]


def config(**fields: Any) -> TrainConfig:
    return TrainConfig.model_validate({"epochs": 10} | fields)


def factors(**fields: Any) -> list[float]:
    made = config(**fields)
    return [lr_factor(made, step, STEPS) for step in range(made.epochs * STEPS)]


@pytest.mark.parametrize(
    ("schedule", "warmup", "floor", "epochs"),
    list(itertools.product(SCHEDULES, [0.0, 0.5, 3.0, 20.0], [0.0, 0.1, 1.0], [1, 10])),
)
def test_factors_are_in_0_1(schedule: str, warmup: float, floor: float, epochs: int) -> None:
    found = factors(schedule=schedule, warmup_epochs=warmup, final_lr_ratio=floor, epochs=epochs)
    assert all(0 < factor <= 1 for factor in found)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warmup_rises_linearly_to_the_full_rate(schedule: str) -> None:
    found = factors(schedule=schedule, warmup_epochs=0.5, step_epochs=5)
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert found[9] == found[10] == 1.0
    assert all(later <= earlier for earlier, later in itertools.pairwise(found[9:]))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_warmup_the_first_step_has_the_full_rate(schedule: str) -> None:
    assert factors(schedule=schedule)[0] == 1.0


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
@pytest.mark.parametrize("warmup", [0.0, 2.0])
def test_falling_schedules_end_at_the_ratio(schedule: str, warmup: float) -> None:
    made = config(schedule=schedule, warmup_epochs=warmup, final_lr_ratio=0.1)
    middle = round(warmup * STEPS) + (10 * STEPS - round(warmup * STEPS)) // 2
    assert lr_factor(made, middle, STEPS) == pytest.approx(0.55)
    assert lr_factor(made, 10 * STEPS, STEPS) == pytest.approx(0.1)


def test_cosine_is_torchs() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10 * STEPS, eta_min=0.2)
    torchs = []
    for _ in range(10 * STEPS):
        torchs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert factors(schedule="cosine", final_lr_ratio=0.2) == pytest.approx(torchs)


def test_step_and_exponential_fall_by_gamma() -> None:
    stepped = factors(schedule="step", gamma=0.5, step_epochs=4)
    assert [stepped[epoch * STEPS] for epoch in (0, 3, 4, 7, 8)] == [1, 1, 0.5, 0.5, 0.25]
    exponential = factors(schedule="exponential", gamma=0.9)
    assert exponential[STEPS - 1 : STEPS + 1] == [1, 0.9]
    assert exponential[-1] == pytest.approx(0.9**9)


def test_constant_stays() -> None:
    assert set(factors()) == {1.0}


def names() -> list[str]:
    found = []
    for name, value in vars(torch.optim).items():
        if inspect.isclass(value) and issubclass(value, torch.optim.Optimizer) and name != "Optimizer":
            found.append(name)
    return sorted(found)


REFUSED = {"LBFGS": "more than once", "SparseAdam": "sparse gradients", "Muon": "two-dimensional"}


@pytest.mark.parametrize("name", names())
def test_every_optimizer_trains_or_is_refused_with_the_reason(name: str) -> None:
    if name in REFUSED:
        with pytest.raises(ValidationError, match=f"{name} is not supported.*{REFUSED[name]}"):
            config(optimizer=name)
        return
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))
    optimizer = build_optimizer(model, config(optimizer=name, lr=1e-2), None)
    before = [parameter.clone() for parameter in model.parameters()]
    for _ in range(2):
        loss = model(torch.randn(8, 3)).square().mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
    assert all(not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))


def test_unknown_optimizer_gets_a_suggestion() -> None:
    with pytest.raises(ValidationError, match=r"no such optimizer in torch\.optim.*did you mean 'AdamW'\?"):
        config(optimizer="AdmW")
    with pytest.raises(ValidationError, match="no such optimizer"):
        config(optimizer="lr_scheduler")
    with pytest.raises(ValidationError, match="no such optimizer"):
        config(phases={"generator": {"optimizer": "Adma"}})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"options": {"beta": [0.9, 0.99]}}, "AdamW takes no option 'beta'.*did you mean 'betas'"),
        ({"options": {"lr": 0.1}}, r"'lr' is a key of its own: train\.lr"),
        ({"options": {"weight_decay": 0.1}}, r"'weight_decay' is a key of its own: train\.weight_decay"),
        ({"options": {"params": []}}, "AdamW takes no option 'params'"),
        ({"optimizer": "Rprop", "weight_decay": 0.1}, "Rprop has no weight decay"),
        ({"options": {"betas": [2.0, 0.9]}}, "AdamW refuses its options.*Invalid beta"),
        ({"optimizer": "SGD", "options": {"momentum": "high"}}, "SGD refuses its options"),
        ({"optimizer": "SGD", "options": {"nesterov": True}}, "Nesterov momentum requires a momentum"),
    ],
)
def test_options_are_checked_when_the_recipe_is_read(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(**fields)


@pytest.mark.parametrize(
    ("phase", "message"),
    [
        ({"optimizer": "SGD"}, "phases.generator: SGD takes no option 'betas'"),
        ({"options": {"momentum": 0.9}}, "phases.generator: AdamW takes no option 'momentum'"),
        ({"optimizer": "Rprop", "options": {}}, "phases.generator: Rprop has no weight decay"),
    ],
)
def test_options_of_a_phase_are_checked_too(phase: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        config(options={"betas": [0.5, 0.9]}, weight_decay=0.1, phases={"generator": phase})


def test_a_phase_overrides_what_it_names() -> None:
    made = config(
        lr=1e-3,
        options={"betas": [0.5, 0.9]},
        phases={"generator": {"optimizer": "SGD", "lr": 0.1, "options": {"momentum": 0.9}}},
    )
    module = nn.Linear(2, 2)
    adam = build_optimizer(module, made, made.phases.get("discriminator"))
    sgd = build_optimizer(module, made, made.phases["generator"])
    assert (type(adam), adam.defaults["lr"], adam.defaults["betas"]) == (torch.optim.AdamW, 1e-3, (0.5, 0.9))
    assert (type(sgd), sgd.defaults["lr"], sgd.defaults["momentum"]) == (torch.optim.SGD, 0.1, 0.9)


def test_only_matrices_decay() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(2, 3))
    decayed, rest = build_optimizer(model, config(weight_decay=0.05), None).param_groups
    assert {id(p) for p in decayed["params"]} == {id(model[0].weight), id(model[3].weight)}
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.05, 0.0)
    everything = [*decayed["params"], *rest["params"]]
    assert {id(p) for p in everything} == {id(p) for p in model.parameters()}


def test_nothing_decays_unless_it_is_asked_for() -> None:
    (group,) = build_optimizer(nn.Linear(2, 2), config(), None).param_groups
    assert group["weight_decay"] == 0.0


def test_frozen_parameters_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    (group,) = build_optimizer(model, config(), None).param_groups
    assert [id(p) for p in group["params"]] == [id(p) for p in model[1].parameters()]


def test_a_batch_must_divide_into_its_parts() -> None:
    with pytest.raises(ValidationError, match="batch_size 10 must be a multiple of accumulate 4"):
        config(batch_size=10, accumulate=4)


@pytest.mark.parametrize("field", ["lr", "weight_decay", "warmup_epochs", "clip_norm"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, True])
def test_numbers_are_finite_and_in_range(field: str, value: float) -> None:
    with pytest.raises(ValidationError, match=field):
        config(**{field: value})


def test_the_optimizer_is_torchs() -> None:
    assert optimizer_class("SGD") is torch.optim.SGD
    check_options("SGD", {"momentum": 0.9, "nesterov": True}, weight_decay=0.1)
