"""A small trained subject that the compression tests share."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from fmdist.compression.subject import Subject
from fmdist.contracts import Draw


@pytest.fixture(scope="session")
def subject() -> Subject:
    """A digits CNN of 5,000 parameters after two epochs of a plain torch loop."""
    from fmdist.data import digits
    from fmdist.models import cnn
    from fmdist.stages.modules import Modules
    from fmdist.tasks import classification

    splits = digits.Config().build(seed=0)
    model = cnn.Config(channels=(8, 16), blocks=2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        task = classification.Config().build(splits.spec, Modules(model))
        roles = task.roles()
        optimizer = torch.optim.AdamW(roles["model"].parameters(), lr=0.01)
        for rows in np.array_split(np.random.default_rng(0).permutation(len(splits.train)), 40):
            loss = task.loss(roles, splits.train.__getitems__(Draw(0, rows)), torch.Generator())
            optimizer.zero_grad()
            torch.autograd.backward(loss.loss_sum / loss.count)
            optimizer.step()
    roles["model"].eval()
    weights = b"".join(value.numpy().tobytes() for value in roles["model"].state_dict().values())
    return Subject(
        name="tiny",
        task=task,
        export=model.export(task.served(roles), task.inputs),
        splits=splits,
        recipe={"name": "tiny", "seed": 0, "model": model.to_recipe()},
        source="runs/tiny",
        fingerprint=hashlib.sha256(weights).hexdigest(),
    )
