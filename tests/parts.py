"""Small stand-ins that several suites use."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from fmdist.contracts import Batch, Draw


class Targets:
    """A data set of which only the targets matter: what a baseline learns from."""

    def __init__(self, targets: NDArray[Any]) -> None:
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitems__(self, draw: Draw) -> Batch:
        message = "a baseline that reads inputs"
        raise AssertionError(message)
