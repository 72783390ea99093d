"""The contracts at which all verbs meet: data, task, model, and where a loop runs.

Shapes: B batch, C channels, H height, W width, F features, K outputs (classes or regression targets).
Nothing here imports torch at run time, so that the command line stays light.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torchmetrics import MetricCollection

Batch = dict[str, Any]
"""One batch: every input of the `DataSpec` by name, ``target``, and ``index`` (B,) int64, the sample keys.

Values are tensors with the batch first; a task with ragged targets (boxes) may use lists.
"""

Roles = Mapping[str, "nn.Module"]
"""Modules of a task by role: ``model``; ``generator`` and ``discriminator``; ``student`` and ``teacher``."""


@dataclass(frozen=True)
class InputSpec:
    """One model input without its batch axis."""

    name: str
    shape: tuple[int, ...]
    dtype: Literal["float32", "int64"] = "float32"


@dataclass(frozen=True)
class TargetSpec:
    """What is to be predicted.

    ``class``: one of `names`, int64 (B,). ``labels``: any of `names`, float32 (B, K) of zeros and ones.
    ``value``: one float per name, float32 (B, K).
    """

    kind: Literal["class", "labels", "value"]
    names: tuple[str, ...]


@dataclass(frozen=True)
class DataSpec:
    """What a data set tells the model and the task, so that recipes never repeat sizes."""

    inputs: tuple[InputSpec, ...]
    target: TargetSpec
    size: int = 0
    """Samples of the training split."""
    counts: tuple[int, ...] = ()
    """For classes and labels: how many training samples carry each of the target's names."""
    moments: tuple[tuple[float, float], ...] = ()
    """For values: mean and standard deviation of each target over the training split."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` reads them back."""
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> DataSpec:
        """Read what `to_json` wrote."""
        inputs = (InputSpec(item["name"], tuple(item["shape"]), item["dtype"]) for item in value["inputs"])
        target = TargetSpec(value["target"]["kind"], tuple(value["target"]["names"]))
        moments = tuple((mean, std) for mean, std in value["moments"])
        return DataSpec(tuple(inputs), target, value["size"], tuple(value["counts"]), moments)


class Draw(NamedTuple):
    """The samples of one batch: positions in a split, and the epoch that keys their augmentation."""

    epoch: int
    indices: NDArray[np.int64]


class Dataset(Protocol):
    """One split of a data set; `torch.utils.data.DataLoader` reads it by whole batches."""

    targets: NDArray[Any]
    """(N,) int64 for classes, (N, K) float32 otherwise."""

    def __len__(self) -> int: ...

    def __getitems__(self, draw: Draw) -> Batch:
        """Return the samples of ``draw``, preprocessed (and augmented, in a training split)."""
        ...


@dataclass(slots=True)
class LossOut:
    """What a phase's loss returns: a sum over ``count`` items, not a mean.

    Sums over known counts make accumulation, uneven ranks and federated weights right together.
    """

    loss_sum: Tensor
    count: float
    logs: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Phase:
    """One optimizer's part of a step: which role it trains, how often, and its loss.

    ``loss(roles, batch, generator)`` runs each engine once (one forward per backward, DeepSpeed's rule);
    ``generator`` is seeded by (seed, epoch, step) for draws that concern the whole batch.
    """

    role: str
    loss: Callable[[Roles, Batch, torch.Generator], LossOut]
    every: int = 1


class Task(Protocol):
    """What is learned. Small on purpose: the loop has no ``if`` on a family or a task."""

    spec: DataSpec
    """What it was built for."""
    primary: tuple[str, Literal["max", "min"]]
    """The metric that chooses the best checkpoint, and whether more of it is better."""

    def roles(self) -> dict[str, nn.Module]:
        """Return the modules, built once; the same objects at every call."""
        ...

    def phases(self) -> Sequence[Phase]:
        """Return the optimizers' parts of a step, in order."""
        ...

    def count(self, batch: Batch) -> float:
        """Return over how many items the loss of ``batch`` sums; called before the forward."""
        ...

    def outputs(self, roles: Roles, batch: Batch) -> Tensor:
        """Return what `metrics` and `decode` take, (B, K), for a batch in evaluation mode."""
        ...

    def metrics(self) -> MetricCollection:
        """Return fresh torchmetrics; ``update(outputs, target)`` takes `outputs` and the batch's target."""
        ...

    def decoding(self) -> dict[str, Any]:
        """Return the rule, as JSON, by which `fmdist.tasks.decoding` turns outputs into answers."""
        ...

    def baseline(self, train: NDArray[Any], size: int) -> NDArray[np.float32]:
        """Return outputs (size, K) of the trivial predictor that has seen only the training targets."""
        ...

    def sample_weights(self, targets: NDArray[Any]) -> NDArray[np.float64] | None:
        """Return how often to draw each training sample, (N,) relative weights; None for each once."""
        ...


@dataclass(frozen=True)
class ExportSpec:
    """How to export one module of a trained model."""

    module: nn.Module
    example_inputs: Callable[[int], tuple[Tensor, ...]]
    """Returns inputs for a batch size; verification probes two sizes."""
    input_names: tuple[str, ...]
    output_names: tuple[str, ...] = ("output",)
    dynamic_axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    """Tensor name -> axis -> name, for every axis that may change, the batch among them."""
    onnx_route: Literal["dynamo", "torchscript"] = "dynamo"
    openvino_route: Literal["trace", "exported"] = "trace"
    probe_batches: tuple[int, int] = (2, 5)
    """Batch sizes at which the exported module is compared with torch."""


class ModelBuilder(Protocol):
    """What a task needs of a model kind's ``Config``."""

    def build(self, spec: DataSpec, outputs: int) -> nn.Module:
        """Return a new module from the data's inputs to (B, outputs), in torch's default initialization."""
        ...


@dataclass(frozen=True)
class Context:
    """Where a training loop runs; the domain layers know this and never Ray."""

    rank: int = 0
    world_size: int = 1
    device: str = "auto"
    """``auto``, ``cpu``, ``cuda``, ``cuda:1``, ``mps``, ..."""
    report: Callable[[Mapping[str, float], str | None], None] | None = None
    """Called after each evaluation with the metrics and the checkpoint's folder, if one was written."""
