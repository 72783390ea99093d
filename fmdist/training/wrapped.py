"""A task around another one: what wraps it changes its training, and leaves the rest to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from fmdist.contracts import Batch, Dataset, InputSpec, Phase, Roles, Task
from fmdist.metrics import MetricCollection


class Wrapped:
    """Is the task that it wraps in all but what a subclass says."""

    def __init__(self, task: Task) -> None:
        self.spec = task.spec
        self.inputs: tuple[InputSpec, ...] = task.inputs
        self.primary: tuple[str, Literal["max", "min"]] = task.primary
        self._task = task

    def roles(self) -> dict[str, nn.Module]:
        """Return the task's own roles."""
        return self._task.roles()

    def phases(self) -> Sequence[Phase]:
        """Return the task's phases."""
        return self._task.phases()

    def count(self, batch: Batch) -> float:
        """Return the task's count."""
        return self._task.count(batch)

    def served(self, roles: Roles) -> nn.Module:
        """Return what the task serves."""
        return self._task.served(roles)

    def decoding(self) -> dict[str, Any]:
        """Return the task's rule."""
        return self._task.decoding()

    def metrics(self) -> MetricCollection:
        """Return the task's metrics."""
        return self._task.metrics()

    def baseline(self, train: Dataset, part: Dataset) -> NDArray[np.float32]:
        """Return the task's baseline."""
        return self._task.baseline(train, part)

    def sample_weights(self, targets: NDArray[Any]) -> NDArray[np.float64] | None:
        """Return the task's weights."""
        return self._task.sample_weights(targets)
