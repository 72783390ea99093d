"""Training steps as one writes them in plain torch, to measure fmdist's loop against.

Each takes a task for its modules and its vocabulary alone, and returns a function that makes one step on a
batch and returns the loss. Noise is drawn as the task draws it, so that both sides end with equal weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from fmdist.contracts import Batch, Task
from fmdist.tasks.noise import normal

Step = Callable[[Batch, torch.Generator], float]


def classifier(task: Task, lr: float) -> Step:
    """Return a step of cross-entropy on the first input."""
    model = task.roles()["model"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    name = task.inputs[0].name

    def step(batch: Batch, generator: torch.Generator) -> float:
        return _update(optimizer, functional.cross_entropy(model(batch[name]), batch["target"]))

    return step


def language_model(task: Task, lr: float) -> Step:
    """Return a step of cross-entropy over the tokens that follow."""
    model = task.roles()["model"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)

    def step(batch: Batch, generator: torch.Generator) -> float:
        logits = model(batch["tokens"]).flatten(0, 1)
        return _update(optimizer, functional.cross_entropy(logits, batch["target"].flatten(), ignore_index=0))

    return step


def variational_autoencoder(task: Task, lr: float) -> Step:
    """Return a step of the negative ELBO with the Bernoulli likelihood."""
    model = task.roles()["model"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.0)
    size = task.inputs[1].shape[0]
    assert size is not None

    def step(batch: Batch, generator: torch.Generator) -> float:
        image = batch["image"]
        noise = normal(generator, 0, batch["index"], size)
        outputs = model(image, noise, torch.ones(len(image), 1))
        pixels = outputs.shape[1] - 2 * size
        logits, mean, log_variance = outputs[:, :pixels], outputs[:, pixels:-size], outputs[:, -size:]
        bce = functional.binary_cross_entropy_with_logits(logits, image.flatten(1), reduction="sum")
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum()
        return _update(optimizer, (bce + kl) / len(image))

    return step


def adversaries(task: Task, lr: float) -> Step:
    """Return a step of both networks with the non-saturating loss."""
    generator, discriminator = (task.roles()[role] for role in ("generator", "discriminator"))
    g_optimizer = torch.optim.AdamW(generator.parameters(), lr=lr, weight_decay=0.0)
    d_optimizer = torch.optim.AdamW(discriminator.parameters(), lr=lr, weight_decay=0.0)
    size = task.inputs[0].shape[0]
    assert size is not None

    def step(batch: Batch, random: torch.Generator) -> float:
        real = batch["image"]
        with torch.no_grad():
            fake = generator(normal(random, 0, batch["index"], size))
        d_real, d_fake = discriminator(torch.cat([real, fake])).split(len(real))
        d_loss = (functional.softplus(-d_real) + functional.softplus(d_fake)).sum() / len(real)
        _update(d_optimizer, d_loss)
        scores = discriminator(generator(normal(random, 1, batch["index"], size)))
        return _update(g_optimizer, functional.softplus(-scores).sum() / len(real))

    return step


def _update(optimizer: torch.optim.Optimizer, loss: Tensor) -> float:
    optimizer.zero_grad()
    torch.autograd.backward(loss)
    optimizer.step()
    return loss.item()


def weights(modules: dict[str, nn.Module]) -> Tensor:
    """Return all parameters and buffers of floating point in one vector."""
    values = [value for module in modules.values() for value in module.state_dict().values()]
    return torch.cat([value.detach().flatten().double() for value in values if value.is_floating_point()])
