"""torchmetrics without the packages that it imports for metrics that nobody asked for.

Where transformers and torchvision are installed, torchmetrics imports them, and the compiler of torch: three
seconds in every process, which are most of what a worker takes to start; scipy.signal takes most of another.
Everything in fmdist imports metrics from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning_utilities.core import imports as lightning

_LEFT_OUT = ("transformers", "torchvision", "matplotlib", "scipy")


@contextmanager
def _without() -> Iterator[None]:
    """Let torchmetrics take some packages for absent."""
    imports: Any = lightning
    cache = imports.RequirementCache
    installed, available = cache.__bool__, imports.package_available

    def found(requirement: Any) -> bool:
        name = str(requirement.requirement or requirement.module)
        return not name.startswith(_LEFT_OUT) and bool(installed(requirement))

    cache.__bool__ = found
    imports.package_available = lambda name: not name.startswith(_LEFT_OUT) and available(name)
    try:
        yield
    finally:
        cache.__bool__, imports.package_available = installed, available


with _without():
    from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, MetricCollection, R2Score
    from torchmetrics.classification import (
        MulticlassAccuracy,
        MulticlassF1Score,
        MultilabelAccuracy,
        MultilabelExactMatch,
        MultilabelF1Score,
    )

__all__ = [
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Metric",
    "MetricCollection",
    "MulticlassAccuracy",
    "MulticlassF1Score",
    "MultilabelAccuracy",
    "MultilabelExactMatch",
    "MultilabelF1Score",
    "R2Score",
]
