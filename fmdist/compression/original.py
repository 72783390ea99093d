"""The model that everything after it is compared with: a torch module, or a graph from elsewhere as it came.

Shapes: B batch, N samples, K outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fmdist.deployment.runtime import Inputs, Session, open_model
from fmdist.errors import CheckpointError

TORCH = ("torch", "fp32", "f32")
"""Runtime, variant and precision of a module that torch runs."""


class Way(NamedTuple):
    """How the original runs: the names that its row in the results has."""

    runtime: str
    variant: str
    precision: str


@dataclass(frozen=True)
class Original:
    """A graph from elsewhere as it was given, under the task's names."""

    runtime: str
    file: Path
    batch: int | None = None
    """The number of samples that it takes, if it takes no other."""

    @property
    def precision(self) -> str:
        """Float32 is asked for in OpenVINO; ONNX Runtime has nothing else."""
        return "f32" if self.runtime == "openvino" else "default"

    def open(self, threads: int | None = None) -> Session:
        """Return it ready to run on any number of samples.

        Raises:
            CheckpointError: if its runtime can't open it.
        """
        session = open_model(self.file, self.runtime, self.precision, threads)
        return session if self.batch is None else FixedBatch(session, self.batch)


class FixedBatch:
    """A session whose model takes a fixed number of samples, called as often as needed.

    Args:
        session: runs the model.
        size: how many samples it takes.
    """

    def __init__(self, session: Session, size: int) -> None:
        self._session = session
        self._size = size

    def run(self, inputs: Inputs) -> NDArray[np.float32]:
        """See `fmdist.deployment.runtime.Session.run`; the last call is filled up with its last sample."""
        total, size = len(next(iter(inputs.values()))), self._size
        parts = []
        for start in range(0, total, size):
            rows = np.minimum(np.arange(start, start + size), total - 1)
            parts.append(self._session.run({name: value[rows] for name, value in inputs.items()}))
        return np.concatenate(parts)[:total]

    def executed(self) -> dict[str, int]:
        """See `fmdist.deployment.runtime.Session.executed`."""
        return self._session.executed()


class Hosted(nn.Module):
    """A graph in its own runtime where a task has its model: it is scored by the code that scores torch.

    It has no weights that torch knows; copies share the session.

    Args:
        original: what runs.
        names: of its inputs, in order.
    """

    def __init__(self, original: Original, names: tuple[str, ...]) -> None:
        super().__init__()
        self.original = original
        self.session = original.open()
        self._names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the answers (B, K).

        Raises:
            CheckpointError: if the runtime fails on these inputs.
        """
        named = {name: value.numpy() for name, value in zip(self._names, inputs, strict=True)}
        try:
            return torch.from_numpy(self.session.run(named))
        except Exception as error:
            # ONNX Runtime's own exceptions derive from Exception and share no base class.
            if isinstance(error, RuntimeError) or type(error).__module__.startswith("onnxruntime"):
                raise CheckpointError(
                    field=str(self.original.file.name),
                    problem=f"{self.original.runtime} can't run the model ({str(error).splitlines()[0]})",
                    value={name: value.shape for name, value in named.items()},
                ) from error
            raise

    def __deepcopy__(self, memo: dict[int, Any]) -> Hosted:
        return self


def way_of(module: nn.Module) -> Way:
    """Return how an original runs."""
    if not isinstance(module, Hosted):
        return Way(*TORCH)
    return Way(module.original.runtime, "original", module.original.precision)
