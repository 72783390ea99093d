"""The contracts at which all verbs meet: data, task, model, and where a loop runs.

Shapes: B batch, C channels, H height, W width, F features, T time, K outputs (classes or regression targets),
N samples, S numbers that a sample's score takes.
Nothing here imports torch at run time, so that the command line stays light.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from fmdist.metrics import MetricCollection

Batch = dict[str, Any]
"""One batch: every input of the `DataSpec` by name, ``target``, and ``index`` (B,) int64, the sample keys.

Values are tensors with the batch first, or lists of a tensor per sample where targets are ragged (boxes);
rules and metrics see the padded `Dataset.targets` instead.
"""

Roles = Mapping[str, "nn.Module"]
"""Modules of a task by role: ``model``; ``generator`` and ``discriminator``; ``student`` and ``teacher``."""


@dataclass(frozen=True)
class InputSpec:
    """One model input without its batch axis."""

    name: str
    shape: tuple[int | None, ...]
    """None is a free axis, such as time: batches are padded along it, with zeros at the end."""
    dtype: Literal["float32", "int64"] = "float32"
    size: int = 0
    """For int64: values are in [0, size); where there is a free axis, 0 is padding."""
    longest: int = 0
    """Largest extent of the free axis that the model will be given; 0 without one."""


@dataclass(frozen=True)
class TargetSpec:
    """What is to be predicted.

    ``class``: one of `names`, int64 (B,). ``labels``: any of `names`, float32 (B, K) of zeros and ones.
    ``value``: one float per name, float32 (B, K). ``tokens``: int64 (B, T) in [0, `size`), 0 is padding.
    ``items``: which of `size` items, int64 (B, L), padded with -1. ``none``: nothing, float32 (B, 0).
    """

    kind: Literal["class", "labels", "value", "tokens", "items", "none"]
    names: tuple[str, ...] = ()
    size: int = 0
    """Tokens: of the vocabulary. Items: how many there are."""
    range: tuple[float, float] | None = None
    """Values: the smallest and the largest that can occur; None: any."""


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
    tokenizers: Mapping[str, str] = field(default_factory=dict)
    """For tokens: input's name, or ``target`` -> the fitted tokenizer, as the tokenizers library's JSON."""
    tables: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    """For identifiers: name of a side feature's input, such as ``item.genre`` -> its values for every id."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values; `from_json` reads them back."""
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> DataSpec:
        """Read what `to_json` wrote."""
        inputs = (InputSpec(**{**item, "shape": tuple(item["shape"])}) for item in value["inputs"])
        known = value["target"]
        limits = None if known["range"] is None else tuple(known["range"])
        target = TargetSpec(**{**known, "names": tuple(known["names"]), "range": limits})
        moments = tuple((mean, std) for mean, std in value["moments"])
        return DataSpec(
            tuple(inputs),
            target,
            value["size"],
            tuple(value["counts"]),
            moments,
            value["tokenizers"],
            {name: tuple(map(tuple, rows)) for name, rows in value["tables"].items()},
        )


class Draw(NamedTuple):
    """The samples of one batch: positions in a split, and the epoch that keys their augmentation."""

    epoch: int
    indices: NDArray[np.int64]


class Dataset(Protocol):
    """One split of a data set; `torch.utils.data.DataLoader` reads it by whole batches.

    Online sources are data sets too: their length says how many samples an epoch has, and each batch is made
    when it is asked for, keyed by its `Draw` (with ``train.workers: 0``, between two steps).
    """

    targets: NDArray[Any]
    """(N, ...) as `TargetSpec` says of a batch."""

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
    after: Callable[[Roles], None] | None = None
    """Called after each of its updates: lets another role follow this one, as a delayed copy does."""


class Task(Protocol):
    """What is learned. Small on purpose: the loop has no ``if`` on a family or a task.

    Training sees `roles` and `phases`. All else sees one module, `served`, and the rule, `decoding`, by which
    scores and answers come from running it: the same rule scores torch and the artifact in its runtime.
    """

    spec: DataSpec
    """What it was built for."""
    primary: tuple[str, Literal["max", "min"]]
    """The metric that chooses the best checkpoint, and whether more of it is better."""
    inputs: tuple[InputSpec, ...]
    """Of the served module, in order: the data's, or others such as noise, which the rule then provides."""

    def roles(self) -> dict[str, nn.Module]:
        """Return the modules, built once; the same objects at every call."""
        ...

    def phases(self) -> Sequence[Phase]:
        """Return the optimizers' parts of a step, in order."""
        ...

    def count(self, batch: Batch) -> float:
        """Return over how many items the loss of ``batch`` sums; called before the forward."""
        ...

    def served(self, roles: Roles) -> nn.Module:
        """Return the module that maps `inputs` to one tensor; it is evaluated, exported and deployed."""
        ...

    def decoding(self) -> dict[str, Any]:
        """Return the rule, as JSON; see `fmdist.tasks.decoding`."""
        ...

    def metrics(self) -> MetricCollection:
        """Return fresh torchmetrics; ``update(rows, target)`` takes the rule's rows, float32 (B, S)."""
        ...

    def baseline(self, train: Dataset, part: Dataset) -> NDArray[np.float32]:
        """Return rows (N, S) of the trivial predictor for ``part``, that has learned from ``train`` only."""
        ...

    def sample_weights(self, targets: NDArray[Any]) -> NDArray[np.float64] | None:
        """Return how often to draw each training sample, (N,) relative weights; None for each once."""
        ...


@dataclass(frozen=True)
class ExportSpec:
    """How to export one module of a trained model."""

    module: nn.Module
    example_inputs: Callable[[int, int], tuple[Tensor, ...]]
    """Returns inputs for a batch size and an extent of the free axes (ignored where there are none)."""
    input_names: tuple[str, ...]
    output_names: tuple[str, ...] = ("output",)
    dynamic_axes: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    """Tensor name -> axis -> name, for every axis that may change, the batch among them."""
    onnx_route: Literal["dynamo", "torchscript"] | None = "dynamo"
    """None: the family can't be exported to ONNX."""
    openvino_route: Literal["trace", "exported"] = "trace"
    float_only: Mapping[str, str] = field(default_factory=dict)
    """Runtime -> why the module can't be quantized for it."""
    fixed: Mapping[str, str] = field(default_factory=dict)
    """Patterns of the names of layers whose sizes can't change -> why."""
    probes: tuple[tuple[int, int], ...] = ((2, 0), (5, 0))
    """Batch sizes and lengths at which an export is compared with torch; the first is the example."""

    def example(self) -> tuple[Tensor, ...]:
        """Return the inputs of the first probe."""
        return self.example_inputs(*self.probes[0])


class ModelBuilder(Protocol):
    """Where a task gets its modules from."""

    def build(self, spec: DataSpec, outputs: int) -> nn.Module:
        """Return a new module of the recipe's model kind, in its initial state."""
        ...

    def trained(self, run: Path) -> nn.Module:
        """Return what a finished run serves, frozen and in evaluation mode: a teacher, a judge."""
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
    stop: Callable[[], int | None] | None = None
    """Asked between two steps: the number of a signal that another process has received for this run."""
    records: Path | None = None
    """A folder that all processes of this attempt see; None for one alone."""
    hanging: Callable[[str], None] | None = None
    """Told which process the others wait for; ends this one."""
