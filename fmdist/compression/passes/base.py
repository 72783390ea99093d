"""What every compression pass is given and gives back.

Two sorts follow each other: passes on the torch model, which may train on (`TorchPass`), and after the export
passes on the models of the runtimes (`ExportedPass`). A `TrainedPass` stands where those do, but makes its
models of the torch model, which it trains on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fmdist.compression.finetune_config import FinetuneConfig
from fmdist.recipe.schema import ComponentConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

    from fmdist.compression.reshape import Change
    from fmdist.contracts import ExportSpec, Task
    from fmdist.data.splits import DataSplits

BUDGET_SLACK = 1e-9
"""Float rounding that is no loss of a metric."""


@dataclass(frozen=True)
class Workbench:
    """What an exported pass works with: the exported models so far, data to calibrate on and to choose by."""

    models: Mapping[str, Path]
    """Runtime -> the float model's file."""
    folder: Path
    """An empty folder for drafts; it is removed afterwards."""
    calibration: Mapping[str, NDArray[Any]]
    """The model's inputs for training samples, by name, batch first."""
    validation: Mapping[str, NDArray[Any]]
    """The validation split as the rule takes it, by name, batch first (mapped files)."""
    rule: Mapping[str, Any]
    """By which a model's rows come from running it; see `fmdist.tasks.decoding`."""
    reference: NDArray[np.float32]
    """The float model's rows (N, S) on the validation split."""
    score: Callable[[NDArray[np.float32], NDArray[np.int64]], float]
    """The primary metric of rows (n, S) for the validation samples at n positions."""
    mode: Literal["max", "min"]
    """Whether more of the metric is better."""
    max_drop: float
    """How much of the metric may be lost against the float model, in its own units."""
    float_only: Mapping[str, str] = field(default_factory=dict)
    """Runtime -> why the model can't be quantized for it."""

    def drop(self, value: float, reference: float) -> float:
        """Return by how much ``value`` is worse than ``reference``; negative if it is better."""
        return reference - value if self.mode == "max" else value - reference


@dataclass(frozen=True)
class Outcome:
    """What an exported pass leaves."""

    variant: str
    """What the new models are called beside the float ones, such as ``int8``."""
    models: Mapping[str, Path]
    """Runtime -> the new model's file in the workbench's folder (OpenVINO: the .bin is beside it)."""
    candidates: list[dict[str, Any]] = field(default_factory=list)
    """Every setting tried, as `fmdist.compression.manifest` describes them."""
    coverage: dict[str, Any] = field(default_factory=dict)
    """Per runtime what was changed and, by name and with the reason, what was not."""
    skipped: Mapping[str, str] = field(default_factory=dict)
    """Runtime -> why the pass left its model as it was."""


@dataclass
class TorchBench:
    """What a torch pass works with."""

    task: Task
    """Its roles hold the weights, on the CPU, in evaluation mode; the pass changes them in place."""
    served: nn.Module
    """What is exported; it shares its parts with the roles."""
    example: tuple[Tensor, ...]
    """Inputs of ``served``, for a batch of two or more."""
    splits: DataSplits
    seed: int
    fixed: Mapping[str, str]
    """Patterns of the names of layers whose sizes the family can't have changed -> why."""
    finetune: Callable[[FinetuneConfig, str], None]
    """Trains `task` as it is now and keeps the best weights; the name tells the rounds of a pass apart."""
    train: Callable[[Task, Mapping[str, Any]], None]
    """Trains a task around this one, by these settings of the `train` section, and keeps its last weights."""
    lr: float
    """The recipe's learning rate, if its optimizer is an Adam, else AdamW's own."""
    value: Callable[[], float]
    """The primary metric of the task as it is now, on the validation split."""
    sensitivity: Callable[[], dict[str, Any]]
    """Measures how sensitive each layer is now; returns what `fmdist.compression.sensitivity` describes."""
    latency: Callable[[], AbstractContextManager[Callable[[nn.Module], float]]]
    """Within it a module's latency over the uncompressed model's is measured, in OpenVINO at one thread."""
    folder: Path
    """The stage's own, for what must not be done again if the stage is interrupted."""


@dataclass
class TrainingBench:
    """What a trained pass works with beside a `Workbench`; its training runs in float32, without averages."""

    task: Task
    """As `TorchBench.task`; a pass may put a task around it here, which is trained and scored then."""
    served: nn.Module
    """See `TorchBench.served`."""
    example: tuple[Tensor, ...]
    """Inputs of ``served``, for a batch of two or more."""
    finetune: Callable[[FinetuneConfig, str], None]
    """Trains `task` as it is now and keeps the best weights."""
    value: Callable[[], float]
    """The primary metric of `task` as it is now, on the validation split."""
    export: ExportSpec
    """Of ``served``."""


@dataclass(frozen=True)
class Reduced:
    """What a torch pass leaves beside the changed task."""

    coverage: dict[str, Any]
    """See `fmdist.compression.passes.layers.summarize`."""
    replaced: Sequence[Change] = ()
    """Layers of ``served`` that others stand for now."""
    candidates: list[dict[str, Any]] = field(default_factory=list)
    """The rounds: {setting, value, parameters, nonzero}."""


class PassConfig(ComponentConfig):
    """The base of every pass kind's ``Config``; use `TorchPass`, `ExportedPass` or `TrainedPass`."""

    order: ClassVar[int] = 0
    """Passes follow each other by rising numbers."""


class ExportedPass(PassConfig):
    """A pass on the models of the runtimes."""

    order: ClassVar[int] = 100

    def check(self, models: Mapping[str, Path]) -> None:
        """Check what can be known from the original's float models, before anything is trained.

        Raises:
            CapabilityError: if this can't be done to them.
        """

    def apply(self, bench: Workbench) -> Outcome:
        """Do the pass.

        Raises:
            CompressionError: if it changed nothing, or lost more than the budget whatever was tried.
        """
        raise NotImplementedError


class TrainedPass(PassConfig):
    """A pass that trains the torch model on and makes the models of the runtimes of it."""

    order: ClassVar[int] = 100

    def check(self, task: Task, module: nn.Module) -> None:
        """Check what can be known from the original, before any work.

        Raises:
            CapabilityError: as `train` does.
        """

    def train(self, bench: Workbench, training: TrainingBench) -> Outcome:
        """Do the pass; the task of ``training`` may be changed or replaced.

        Raises:
            CapabilityError: if a name of a setting fits no layer, or the model can't be trained so.
            CompressionError: if it changed nothing, or lost more than the budget.
        """
        raise NotImplementedError


class TorchPass(PassConfig):
    """A pass on the torch model, before the export."""

    renames: ClassVar[bool] = False
    """Whether layers have other names afterwards."""

    ignore: tuple[str, ...] = ()
    """Names of layers to leave as they are, or patterns such as `layer4.*`."""
    finetune: FinetuneConfig | None = FinetuneConfig()
    """Training afterwards, or after every round; null leaves it out."""

    def check(self, module: nn.Module, example: tuple[Tensor, ...], fixed: Mapping[str, str]) -> None:
        """Check what can be known from the original, before any work.

        Args:
            module: what is served.
            example: its inputs.
            fixed: see `TorchBench.fixed`.

        Raises:
            CapabilityError: as `reduce` does.
        """

    def reduce(self, bench: TorchBench) -> Reduced:
        """Do the pass on the task of ``bench``.

        Raises:
            CompressionError: if it changed nothing, or the model no longer runs.
            CapabilityError: if a name of ``ignore`` fits no layer, or no layer can be changed.
        """
        raise NotImplementedError
