"""Reconstruction: an autoencoder that gives its input back through a narrow code.

Shapes: B batch, N samples, D values of an input.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn

from fmdist.contracts import Batch, Dataset, DataSpec, LossOut, ModelBuilder, Roles
from fmdist.metrics import MetricCollection
from fmdist.tasks.base import OneModelTask, SummedLoss, TaskConfig, choose_primary
from fmdist.tasks.decoding.reconstruction import error_rows
from fmdist.tasks.latent import data_input, latent_model, mean_of, read_inputs
from fmdist.tasks.noise import normal


class Config(TaskConfig):
    """Squared error between an input and what its code gives back, in the units of the model's inputs.

    With data.normalize that is standard deviations of the training split.
    """

    needs: ClassVar[str] = "autoencoder"

    noise: float = Field(default=0.0, ge=0)
    """Standard deviation of normal noise added to training inputs, which the model learns to remove
    (Vincent et al. 2008, doi:10.1145/1390156.1390294); in the units of the model's inputs."""
    primary: str | None = None
    """Metric that chooses the best checkpoint; by default mse."""

    def build(self, spec: DataSpec, model: ModelBuilder) -> Reconstruction:
        """Return the task; see `TaskConfig.build`."""
        data_input(spec, self.kind())
        return Reconstruction(self, spec, Reconstructor(model.build(spec, 0)))


class Reconstructor(nn.Module):
    """From an input to its reconstruction; this is what is served."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Return the reconstruction, of the input's shape and in its units."""
        model = latent_model(self.model)
        code_BZ = model.encode(x)
        assert isinstance(code_BZ, Tensor)
        return model.decode(code_BZ)


class Reconstruction(OneModelTask):
    """Targets are not used: any data of images or tables will do."""

    def __init__(self, config: Config, spec: DataSpec, model: Reconstructor) -> None:
        super().__init__(spec, model)
        self.primary = choose_primary(config.primary or "mse", {"mse": "min", "mae": "min"})
        self._noise = config.noise
        self._name = spec.inputs[0].name

    def loss(self, roles: Roles, batch: Batch, generator: torch.Generator) -> LossOut:
        """Return the mean squared error of each sample, summed over samples."""
        wanted = batch[self._name]
        given = wanted
        if self._noise:
            noise = normal(generator, 0, batch["index"], wanted[0].numel())
            given = wanted + self._noise * noise.reshape(wanted.shape)
        errors_BD = (roles["model"](given) - wanted).flatten(1)
        return LossOut(errors_BD.square().mean(dim=1).sum(), len(wanted))

    def metrics(self) -> MetricCollection:
        """Return the mean squared and the mean absolute error."""
        return MetricCollection(
            {
                "mse": SummedLoss(mean_of(lambda rows: rows[:, 0])),
                "mae": SummedLoss(mean_of(lambda rows: rows[:, 1])),
            },
            compute_groups=False,
        )

    def decoding(self) -> dict[str, Any]:
        """Return the rule that compares inputs with reconstructions."""
        shape = list(self.spec.inputs[0].shape)
        return {"rule": "reconstruct", "inputs": [self._name], "shape": shape}

    def baseline(self, train: Dataset, part: Dataset) -> NDArray[np.float32]:
        """Return rows of a predictor that always answers the training split's mean."""
        total = sum(chunk.sum(axis=0, dtype=np.float64) for chunk in read_inputs(train, self._name))
        mean_D = (total / len(train)).astype(np.float32)
        return np.concatenate(
            [error_rows(chunk, np.tile(mean_D, (len(chunk), 1))) for chunk in read_inputs(part, self._name)]
        )
