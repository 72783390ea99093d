"""What every compression pass is given and gives back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fmdist.recipe.schema import ComponentConfig

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BUDGET_SLACK = 1e-9
"""Float rounding that is no loss of a metric."""


@dataclass(frozen=True)
class Workbench:
    """What a pass works with: the exported models so far, data to calibrate on and to choose by."""

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
    """The original's rows (N, S) on the validation split."""
    score: Callable[[NDArray[np.float32], NDArray[np.int64]], float]
    """The primary metric of rows (n, S) for the validation samples at n positions."""
    mode: Literal["max", "min"]
    """Whether more of the metric is better."""
    max_drop: float
    """How much of the metric may be lost, in its own units."""
    float_only: Mapping[str, str] = field(default_factory=dict)
    """Runtime -> why the model can't be quantized for it."""

    def drop(self, value: float, reference: float) -> float:
        """Return by how much ``value`` is worse than ``reference``; negative if it is better."""
        return reference - value if self.mode == "max" else value - reference


@dataclass(frozen=True)
class Outcome:
    """What a pass leaves."""

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


class PassConfig(ComponentConfig):
    """The base of every pass kind's ``Config``."""

    def apply(self, bench: Workbench) -> Outcome:
        """Do the pass.

        Raises:
            CompressionError: if it changed nothing, or lost more than the budget whatever was tried.
        """
        raise NotImplementedError
