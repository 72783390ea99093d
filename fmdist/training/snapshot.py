"""All that training goes on from, as copies that can be written while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from fmdist.training.group import Group


class Stateful(Protocol):
    """An optimizer, or what stands for one whose state lies in shards."""

    def state_dict(self) -> dict[str, Any]:
        """Return the whole state as `torch.optim.Optimizer` does."""
        ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore it."""
        ...


@dataclass
class Trainables:
    """Everything with a state that a checkpoint saves and restores in place."""

    roles: Mapping[str, nn.Module]
    averages: Mapping[str, AveragedModel]
    """The averaged module of each role, empty without EMA."""
    optimizers: Mapping[str, Stateful]
    refresh: Callable[[], None] = lambda: None
    """Brings the modules up to date where they are copies of shards; all processes call it together."""


@dataclass(frozen=True)
class Snapshot:
    """Copies in the CPU's memory of all that a checkpoint holds, so that training can go on meanwhile."""

    files: Mapping[str, tuple[dict[str, Tensor], dict[str, str]]]
    """File -> tensors by name, and further names -> the name of the same tensor."""
    numbers: Mapping[str, Any]
    """Of the optimizers, by role."""
    averaged: Mapping[str, int]
    """Role -> updates in its moving average."""


def snapshot(trainables: Trainables, group: Group | None = None) -> Snapshot | None:
    """Copy the state; all processes call it together, and the first one gets it."""
    trainables.refresh()
    states = {role: optimizer.state_dict() for role, optimizer in trainables.optimizers.items()}
    if group is not None and not group.leads:
        return None
    files, numbers = {}, {}
    for role, module in trainables.roles.items():
        files[f"{role}.safetensors"] = _named(module)
    for role, average in trainables.averages.items():
        files[f"ema.{role}.safetensors"] = _named(average.module)
    for role, state in states.items():
        tensors, numbers[role] = split_optimizer(state)
        files[f"optimizer.{role}.safetensors"] = tensors, {}
    averaged = {role: int(average.n_averaged) for role, average in trainables.averages.items()}
    return Snapshot(files, numbers, averaged)


def split_optimizer(state: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return an optimizer's tensors by ``parameter.name``, and the rest as JSON values."""
    tensors, numbers = {}, {}
    for parameter, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{parameter}.{name}"] = _copied(value)
            else:
                numbers[f"{parameter}.{name}"] = value
    return tensors, {"numbers": numbers, "groups": state["param_groups"]}


def _named(module: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return copies of a module's tensors by name, and the further names of those that have several."""
    tensors: dict[str, Tensor] = {}
    first: dict[int, str] = {}
    others: dict[str, str] = {}
    for name, value in sorted(module.state_dict(keep_vars=True).items()):
        if id(value) in first:
            others[name] = first[id(value)]
            continue
        first[id(value)] = name
        tensors[name] = _copied(value)
    return tensors, others


def _copied(value: Tensor) -> Tensor:
    return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def join_optimizer(tensors: dict[str, Any], rest: Mapping[str, Any]) -> dict[str, Any]:
    """Return an optimizer's state from what `split_optimizer` made of it."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in (tensors | rest["numbers"]).items():
        parameter, _, name = key.partition(".")
        state.setdefault(int(parameter), {})[name] = value
    groups = [
        {key: tuple(value) if key == "betas" else value for key, value in group.items()}
        for group in rest["groups"]
    ]
    return {"state": state, "param_groups": groups}
