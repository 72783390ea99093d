"""What the tasks on models with a latent code share.

Shapes: B batch, D values of an input, Z latent variables.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fmdist.contracts import Dataset, DataSpec, Draw, InputSpec
from fmdist.errors import CapabilityError, DataError

CHUNK = 1024
"""Samples that are read at a time where a whole split might not fit into memory."""


class Latent(Protocol):
    """A module of the form ``autoencoder`` or ``variational``."""

    latent: int

    def encode(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return the code, or the mean and log variance, (B, Z)."""
        ...

    def decode(self, code_BZ: Tensor) -> Tensor:
        """Return values or logits of the inputs' shape."""
        ...


def latent_model(module: nn.Module) -> Latent:
    """Return ``module`` as what its form promises."""
    return cast("Latent", module)


def latent_size(module: nn.Module) -> int:
    """Return Z; 0 for the stand-in of an artifact that is scored without its model's code."""
    return int(getattr(module, "latent", 0))


def data_input(spec: DataSpec, task: str) -> InputSpec:
    """Return the only input, numbers of a fixed shape.

    Raises:
        CapabilityError: if the data has several inputs, tokens or identifiers.
    """
    first = spec.inputs[0]
    if len(spec.inputs) > 1 or first.dtype != "float32" or None in first.shape:
        raise CapabilityError(
            field="task.kind",
            problem=f"'{task}' learns images or the numbers of a table, and the data gives something else",
            value=[item.name for item in spec.inputs],
            fix="use data of images or tables",
        )
    return first


def read_inputs(dataset: Dataset, name: str) -> list[NDArray[np.float32]]:
    """Return an input of all samples in chunks, flattened to (n, D)."""
    places = np.arange(len(dataset))
    batches = (
        dataset.__getitems__(Draw(0, places[start : start + CHUNK])) for start in range(0, len(places), CHUNK)
    )
    return [torch.flatten(batch[name], 1).numpy() for batch in batches]


def check_unit(x: Tensor, field: str, problem: str) -> None:
    """Raise `DataError` if a value isn't in [0, 1]; synchronizes CPU and GPU."""
    low, high = (float(value) for value in x.aminmax())
    if low < 0 or high > 1:
        raise DataError(
            field=field,
            problem=f"{problem}, and the data's are in [{low:.4g}, {high:.4g}]",
            fix="set data.normalize: false",
        )


def mean_of(column: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], tuple[Tensor, float]]:
    """Return what `SummedLoss` needs for the mean over samples of a number of their rows (N, S)."""

    def total(rows: Tensor, target: Tensor) -> tuple[Tensor, float]:
        return column(rows.double()).sum(), len(rows)

    return total
