"""A torch pass's bench around any module, with digits for data; its training only counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fmdist.compression.finetune_config import FinetuneConfig
from fmdist.compression.passes.base import TorchBench
from fmdist.compression.sensitivity import Model, measure
from fmdist.compression.sensitivity_config import SensitivityConfig
from fmdist.contracts import DataSpec, Task
from fmdist.data import digits
from fmdist.data.splits import DataSplits
from fmdist.tasks import classification

SPLITS = digits.Config().build(seed=0)


class Given:
    """A model builder that gives what it was given."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def build(self, spec: DataSpec, outputs: int) -> nn.Module:
        return self.module

    def trained(self, run: Any) -> nn.Module:
        raise NotImplementedError


def bench(
    module: nn.Module,
    example: tuple[Tensor, ...] | None = None,
    fixed: Mapping[str, str] | None = None,
    train: Callable[[FinetuneConfig, str], None] = lambda config, name: None,
    splits: DataSplits = SPLITS,
    latency: Callable[[nn.Module], float] = lambda module: 1.0,
    folder: Path = Path("unused"),
    train_masks: Callable[[Task, Mapping[str, Any]], None] = lambda task, settings: None,
) -> TorchBench:
    """Return a bench; ``module`` is changed by the pass that is given it."""
    task = classification.Config().build(splits.spec, Given(module.eval()))
    inputs = (torch.randn(2, 1, 8, 8),) if example is None else example
    return TorchBench(
        task=task,
        served=module,
        example=inputs,
        splits=splits,
        seed=0,
        fixed=fixed or {},
        finetune=train,
        train=train_masks,
        lr=1e-3,
        value=lambda: 0.0,
        sensitivity=lambda: measure(Model(task, inputs, splits, seed=0), SensitivityConfig()),
        latency=lambda: nullcontext(latency),
        folder=folder,
    )
