"""BatchNorm's statistics, measured anew where weights before it have changed."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fmdist.contracts import Draw, Task
from fmdist.data.splits import DataSplits
from fmdist.tasks import decoding
from fmdist.training.evaluation import as_arrays

_NORMS = (nn.modules.batchnorm._BatchNorm,)
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
    norms = [part for part in module.modules() if isinstance(part, _NORMS) and part.track_running_stats]
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
