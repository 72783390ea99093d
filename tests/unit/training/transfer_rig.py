"""Tasks to transfer between, and transfers that a test configures."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from fmdist import storage
from fmdist.contracts import DataSpec, InputSpec, TargetSpec, Task
from fmdist.data.preprocess import Column, Preprocess, TablePreprocess
from fmdist.models import mlp
from fmdist.models.base import ModelConfig
from fmdist.stages.modules import Modules
from fmdist.tasks import classification
from fmdist.tasks.base import TaskConfig
from fmdist.training.run import build_task
from fmdist.training.transfer import Transfer
from fmdist.training.transfer_config import TransferConfig

NET = mlp.Config(hidden=(8, 6), norm="batch")
ROW = (InputSpec("row", (5,)),)
IMAGE = (InputSpec("image", (3, 16, 16)),)


def classes(*names: str, inputs: tuple[InputSpec, ...] = ROW) -> DataSpec:
    return DataSpec(inputs, TargetSpec("class", names), 10, (1,) * len(names))


ABC = classes("a", "b", "c")


def make(
    spec: DataSpec, net: ModelConfig = NET, seed: int = 0, task: TaskConfig | None = None
) -> tuple[Task, Callable[[DataSpec], Task]]:
    """A task, and what builds another one like it."""
    rebuild = partial(build_task, task or classification.Config(), seed, model=Modules(net))
    return rebuild(spec), rebuild


def state(task: Task) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in task.roles()["model"].state_dict().items()}


def configured(**fields: Any) -> TransferConfig:
    return TransferConfig.model_validate_json(json.dumps(fields))


def transfer(
    source: Path, spec: DataSpec = ABC, net: ModelConfig = NET, task: TaskConfig | None = None, **fields: Any
) -> tuple[Task, Transfer]:
    """A task of seed 1 that starts from ``source``."""
    made, rebuild = make(spec, net, 1, task)
    config = configured(init_from=str(source), **fields)
    return made, Transfer(config, made, rebuild, 1)


def values(mean: float) -> DataSpec:
    return DataSpec(ROW, TargetSpec("value", ("y",)), 10, (), ((mean, 2.0),))


ANY = TablePreprocess((Column("a"),))


def write_run(folder: Path, preprocess: Preprocess = ANY) -> None:
    """Write what makes a folder a run for `read_source`."""
    (folder / "run.json").write_text("{}")
    storage.write_json(folder / "signature.json", {"preprocessing": preprocess.to_json()})
