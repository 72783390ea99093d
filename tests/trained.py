"""A digits CNN, trained by a plain torch loop, as compression takes it."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from fmdist.compression.subject import Subject
from fmdist.contracts import Draw
from fmdist.data import digits
from fmdist.models import cnn
from fmdist.stages.modules import Modules
from fmdist.tasks import classification


def digits_cnn(name: str, channels: tuple[int, ...], blocks: int, epochs: int, lr: float = 2e-3) -> Subject:
    """Return a subject whose model made 20 steps of AdamW in each epoch."""
    splits = digits.Config().build(seed=0)
    model = cnn.Config(channels=channels, blocks=blocks)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        task = classification.Config().build(splits.spec, Modules(model))
        roles = task.roles()
        optimizer = torch.optim.AdamW(roles["model"].parameters(), lr=lr)
        for epoch in range(epochs):
            order = np.random.default_rng(epoch).permutation(len(splits.train))
            for rows in np.array_split(order, 20):
                loss = task.loss(roles, splits.train.__getitems__(Draw(epoch, rows)), torch.Generator())
                optimizer.zero_grad()
                torch.autograd.backward(loss.loss_sum / loss.count)
                optimizer.step()
    roles["model"].eval()
    weights = b"".join(value.numpy().tobytes() for value in roles["model"].state_dict().values())
    return Subject(
        name=name,
        task=task,
        export=model.export(task.served(roles), task.inputs),
        splits=splits,
        recipe={"name": name, "seed": 0, "model": model.to_recipe()},
        source=f"runs/{name}",
        fingerprint=hashlib.sha256(weights).hexdigest(),
    )
