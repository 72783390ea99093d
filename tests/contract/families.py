"""Every pair of task and model kind that fits, over the first tiny data set that both take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmdist import component
from fmdist.contracts import Batch, Draw, ExportSpec, Task
from fmdist.data.splits import DataSplits, Samples
from fmdist.errors import CapabilityError
from fmdist.models.base import ModelConfig
from fmdist.stages.modules import Modules
from fmdist.tasks.base import TaskConfig
from tests.contract.data_samples import SAMPLES, VARIANTS

BATCH = 8


def config_of(group: str, kind: str) -> Any:
    return component.load(component.find(group, kind)).model_validate({})


def pairs() -> list[tuple[str, str]]:
    """Return (task, model) kinds of which the one trains what the other builds."""
    tasks = {kind: config_of("tasks", kind).needs for kind in sorted(component.kinds("tasks"))}
    models = {kind: config_of("models", kind).form for kind in sorted(component.kinds("models"))}
    fitting = [
        (task, model) for model, form in models.items() for task, needs in tasks.items() if needs == form
    ]
    # To a task of outputs per sample all their models are alike: one task meets all, the others meet one.
    return [
        (task, model)
        for task, model in fitting
        if tasks[task] != "outputs" or task == "classification" or model == "mlp"
    ]


@dataclass(frozen=True)
class Family:
    """A task with a model of default settings, on tiny data."""

    data: DataSplits
    task_config: TaskConfig
    model_config: ModelConfig

    def build(self, seed: int = 0) -> Task:
        """Return the task in the initial state that a seed decides."""
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self.task_config.build(self.data.spec, Modules(self.model_config))

    def export(self, task: Task) -> ExportSpec:
        """Return how what the task serves is exported, in evaluation mode."""
        module = task.served(task.roles()).eval().requires_grad_(False)
        return self.model_config.export(module, task.inputs)


def find_family(task: str, model: str, folder: Path, built: dict[str, DataSplits]) -> Family:
    """Return the pair over the first data set that both take.

    Args:
        task: kind.
        model: kind.
        folder: where samples are written.
        built: data sets that were built before, by name; gains those that this call builds.
    """
    for name in (*VARIANTS, *SAMPLES):
        if name not in built:
            built[name] = build_data(name, folder / name)
        family = Family(built[name], config_of("tasks", task), config_of("models", model))
        try:
            family.build()
        except CapabilityError:
            continue
        return family
    message = f"no data set has what task '{task}' and model '{model}' take"
    raise LookupError(message)


def build_data(name: str, folder: Path) -> DataSplits:
    """Return the data of a sample or a variant."""
    folder.mkdir()
    values = VARIANTS[name](folder) if name in VARIANTS else {"kind": name, **SAMPLES[name](folder)}
    config = component.load(component.find("data", values.pop("kind")))
    splits: DataSplits = config.model_validate(values).build(0)
    return splits


def batch_of(split: Samples, rows: slice = slice(0, BATCH), epoch: int = 0) -> Batch:
    return split.__getitems__(Draw(epoch, np.arange(len(split))[rows]))


def trained(
    task: Task, data: DataSplits, steps: int = 3, lr: float = 1e-3, dtype: torch.dtype = torch.float32
) -> list[float]:
    """Make some steps of every phase and return the first phase's mean losses."""
    generator, losses = torch.Generator(), []
    roles = task.roles()
    # For what a loss draws itself; the batch is of that type already.
    hooks = [
        module.train().to(dtype).register_forward_pre_hook(lambda _, inputs: _as(dtype, inputs))
        for module in roles.values()
    ]
    phases = task.phases()
    optimizers = [torch.optim.Adam(roles[phase.role].parameters(), lr=lr) for phase in phases]
    torch.manual_seed(0)
    for step in range(steps):
        batch = batch_of(data.train, slice(0, 2 * BATCH), epoch=0)
        batch = dict(zip(batch, _as(dtype, batch.values()), strict=True))
        for position, (phase, optimizer) in enumerate(zip(phases, optimizers, strict=True)):
            count = task.count(batch)
            out = phase.loss(roles, batch, generator.manual_seed(step))
            optimizer.zero_grad()
            torch.autograd.backward(out.loss_sum / count)
            optimizer.step()
            if position == 0:
                losses.append(out.loss_sum.item() / count)
    for module in roles.values():
        module.eval()
    for hook in hooks:
        hook.remove()
    return losses


def _as(dtype: torch.dtype, values: Iterable[Tensor]) -> tuple[Tensor, ...]:
    return tuple(value.to(dtype) if value.is_floating_point() else value for value in values)


def arrays(batch: Batch) -> dict[str, NDArray[Any]]:
    return {name: value.numpy() for name, value in batch.items()}
