"""What stands before a BatchNorm, and its statistics, measured anew where weights before it have changed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fmdist.compression.passes.layers import run_hooked
from fmdist.contracts import Draw, Task
from fmdist.data.splits import DataSplits
from fmdist.tasks import decoding
from fmdist.training.evaluation import as_arrays

NORMS = (nn.modules.batchnorm._BatchNorm,)
LAYERS = (nn.modules.conv._ConvNd, nn.Linear)

_CHUNK = 128


@torch.no_grad()
def adapt(module: nn.Module, task: Task, splits: DataSplits, samples: int, seed: int) -> None:
    """Replace the running statistics by those of training samples; nothing happens without BatchNorm.

    Args:
        module: what the task serves; its dropout stays off.
        task: names the module's inputs.
        splits: the training split is used, without augmentation.
        samples: how many, drawn by ``seed``.
        seed: keys the draw.
    """
    norms = [part for part in module.modules() if isinstance(part, NORMS) and part.track_running_stats]
    if not norms:
        return
    names, rule = [item.name for item in task.inputs], task.decoding()
    train = splits.train.plain()
    rows = np.random.default_rng(seed).permutation(len(train))[:samples].astype(np.int64)
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the plain mean over all batches
            norm.train()
        for part in np.array_split(rows, max(1, len(rows) // _CHUNK)):
            # By the rule, since what is served may read something else than the data, such as noise.
            inputs = decoding.feed(rule, as_arrays(train.__getitems__(Draw(0, part))))
            module(*[torch.from_numpy(inputs[name]) for name in names])
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


def sources(module: nn.Module, example: tuple[Tensor, ...]) -> dict[str, str | None]:
    """Return for each BatchNorm that runs the layer whose output it takes, by name.

    None stands for anything else: no convolution or linear layer, or one of both runs twice.
    """
    made: dict[int, str] = {}
    kept: list[Tensor] = []  # an id is a tensor's own only while it lives
    found: dict[str, str | None] = {}
    runs: Counter[str] = Counter()

    def note(name: str) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            made[id(output)] = name
            runs[name] += 1
            kept.append(output)

        return hook

    def ask(name: str) -> Any:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found[name] = None if name in found else made.get(id(inputs[0]))

        return hook

    handles: list[RemovableHandle] = []
    for name, part in module.named_modules():
        if isinstance(part, LAYERS):
            handles.append(part.register_forward_hook(note(name)))
        elif isinstance(part, NORMS):
            handles.append(part.register_forward_pre_hook(ask(name)))
    run_hooked(module, example, handles)
    return {name: None if source is None or runs[source] > 1 else source for name, source in found.items()}
