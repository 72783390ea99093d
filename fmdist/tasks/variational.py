"""Variational inference: a variational autoencoder that maximizes a bound on log p(x).

Shapes: B batch, N samples, D values of an input, Z latent variables.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fmdist.contracts import Batch, Dataset, DataSpec, InputSpec, LossOut, ModelBuilder, Roles
from fmdist.metrics import Metric, MetricCollection
from fmdist.tasks.base import OneModelTask, SummedLoss, TaskConfig, choose_primary
from fmdist.tasks.decoding.reconstruction import log_likelihood
from fmdist.tasks.latent import (
    check_unit,
    data_input,
    latent_model,
    latent_size,
    mean_of,
    read_inputs,
)
from fmdist.tasks.noise import normal


class Config(TaskConfig):
    """The evidence lower bound (ELBO) of Kingma & Welling 2013 (arXiv:1312.6114)."""

    needs: ClassVar[str] = "variational"

    likelihood: Literal["gaussian", "bernoulli"] = "gaussian"
    """Of an input given its code: `gaussian` around the decoder's values, or `bernoulli` for pixels in
    [0, 1], which needs data.normalize false."""
    deviation: float = Field(default=1.0, gt=0)
    """Standard deviation of the Gaussian likelihood, in the units of the model's inputs."""
    beta: float = Field(default=1.0, ge=0)
    """Weight of the KL divergence in training (Higgins et al. 2017); the metrics are those of 1."""
    samples: int = Field(default=16, ge=1)
    """Draws per input in evaluation, for the importance-weighted bound (Burda et al. 2016,
    arXiv:1509.00519); each costs a forward pass."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of these draws."""
    primary: str | None = None
    """Metric that chooses the best checkpoint; by default elbo."""

    def build(self, spec: DataSpec, model: ModelBuilder) -> Variational:
        """Return the task; see `TaskConfig.build`."""
        data_input(spec, self.kind())
        return Variational(self, spec, Reparametrized(model.build(spec, 0)))


class Reparametrized(nn.Module):
    """From an input and noise to p(x|z) and q(z|x), in one forward; this is what is served."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, noise_BZ: Tensor, posterior_B1: Tensor) -> Tensor:
        """Return (B, D + 2 Z): decoder's logits or means, and the mean and log variance of q(z|x).

        z = mean + deviation * noise where ``posterior_B1`` is 1; where it is 0, z is the noise: a draw from
        the prior, with which the decoder makes up an input.
        """
        model = latent_model(self.model)
        mean_BZ, log_variance_BZ = model.encode(x)
        inferred_BZ = mean_BZ + (0.5 * log_variance_BZ).exp() * noise_BZ
        code_BZ = posterior_B1 * inferred_BZ + (1 - posterior_B1) * noise_BZ
        return torch.cat([model.decode(code_BZ).flatten(1), mean_BZ, log_variance_BZ], dim=1)


class Variational(OneModelTask):
    """Targets are not used: any data of images or tables will do."""

    def __init__(self, config: Config, spec: DataSpec, model: Reparametrized) -> None:
        super().__init__(spec, model)
        data = spec.inputs[0]
        self._latent = latent_size(model.model)
        self.inputs = (
            data,
            InputSpec("noise", (self._latent,)),
            InputSpec("posterior", (1,)),
        )
        self._config = config
        self._name = data.name
        self._size = math.prod(size or 1 for size in data.shape)
        self.primary = choose_primary(
            config.primary or "elbo",
            {"elbo": "max", "iw_bound": "max", "reconstruction": "max", "kl": "min", "bits_per_dim": "min"},
        )

    def loss(self, roles: Roles, batch: Batch, generator: torch.Generator) -> LossOut:
        """Return beta * KL - log p(x|z), in nats, with one draw per sample, summed over samples.

        Raises:
            DataError: for the Bernoulli likelihood, if an input isn't in [0, 1].
        """
        x = batch[self._name]
        if self._config.likelihood == "bernoulli":
            check_unit(x, "task.likelihood", "'bernoulli' is for pixels in [0, 1]")
        noise_BZ = normal(generator, 0, batch["index"], self._latent)
        outputs = roles["model"](x, noise_BZ, noise_BZ.new_ones(len(x), 1))
        decoded_BD, mean_BZ, log_variance_BZ = outputs.split([self._size, self._latent, self._latent], dim=1)
        reconstruction = self._log_likelihood(x.flatten(1), decoded_BD).sum()
        kl = kl_divergence(mean_BZ, log_variance_BZ).sum()
        logs = {"reconstruction": reconstruction.detach(), "kl": kl.detach()}
        return LossOut(self._config.beta * kl - reconstruction, len(x), logs)

    def metrics(self) -> MetricCollection:
        """Return the ELBO, its two terms, the importance-weighted bound (nats per sample), bits per value."""
        nats_per_bit = math.log(2) * self._size
        columns = {
            "elbo": lambda rows: rows[:, 0] - rows[:, 1],
            "iw_bound": lambda rows: rows[:, 2],
            "reconstruction": lambda rows: rows[:, 0],
            "kl": lambda rows: rows[:, 1],
            "bits_per_dim": lambda rows: (rows[:, 1] - rows[:, 0]) / nats_per_bit,
        }
        metrics: dict[str, Metric | MetricCollection] = {
            name: SummedLoss(mean_of(column)) for name, column in columns.items()
        }
        return MetricCollection(metrics, compute_groups=False)

    def decoding(self) -> dict[str, Any]:
        """Return the rule of the bounds."""
        config = self._config
        rule = {"rule": "elbo", "inputs": [self._name], "shape": list(self.spec.inputs[0].shape)}
        drawing = {"latent": self._latent, "samples": config.samples, "seed": config.seed}
        return {**rule, **drawing, "likelihood": config.likelihood, "deviation": config.deviation}

    def baseline(self, train: Dataset, part: Dataset) -> NDArray[np.float32]:
        """Return rows of a model without a code: independent values around the training split's mean."""
        total_D = sum(chunk.sum(axis=0, dtype=np.float64) for chunk in read_inputs(train, self._name))
        rule = self.decoding()
        if self._config.likelihood == "bernoulli":
            # Laplace's rule, since a pixel that never was white may be white some day
            mean_D = (total_D + 1) / (len(train) + 2)
            decoded_D = np.log(mean_D) - np.log1p(-mean_D)
        else:
            decoded_D = mean_D = total_D / len(train)
        rows = []
        for chunk in read_inputs(part, self._name):
            log_N = log_likelihood(rule, chunk, np.tile(decoded_D, (len(chunk), 1)))
            pictures = np.tile(mean_D, (len(chunk), 2))
            rows.append(np.column_stack([log_N, np.zeros(len(chunk)), log_N, pictures]))
        return np.concatenate(rows).astype(np.float32)

    def _log_likelihood(self, x_BD: Tensor, decoded_BD: Tensor) -> Tensor:
        """Return log p(x|z), (B,), as `fmdist.tasks.decoding.reconstruction.log_likelihood` does."""
        if self._config.likelihood == "bernoulli":
            losses_BD = functional.binary_cross_entropy_with_logits(decoded_BD, x_BD, reduction="none")
            return -losses_BD.sum(dim=1)
        deviation = self._config.deviation
        squares_B = (x_BD - decoded_BD).square().sum(dim=1)
        constant = x_BD.shape[1] * math.log(deviation * math.sqrt(2 * math.pi))
        return -0.5 * squares_B / deviation**2 - constant


def kl_divergence(mean_BZ: Tensor, log_variance_BZ: Tensor) -> Tensor:
    """Return KL(N(mean, variance) || N(0, 1)) in nats, (B,) (Kingma & Welling 2013, appendix B)."""
    return 0.5 * (mean_BZ.square() + log_variance_BZ.exp() - 1 - log_variance_BZ).sum(dim=1)
