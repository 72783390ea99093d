"""The smallest ratio of channels to remove that meets a target, by bisection."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from torch import nn

from fmdist import storage
from fmdist.compression.passes.base import TorchBench
from fmdist.errors import CompressionError

_STEPS = 12
_FOUND = "latency.json"
"""A stage's file: what was found, so that an interrupted stage doesn't measure again and find another."""

log = logging.getLogger(__name__)


def smallest(fits: Callable[[float], bool], most: float) -> float:
    """Return the smallest ratio up to ``most`` that fits; ``most`` if none does."""
    low, high = 0.0, most
    for _ in range(_STEPS):
        ratio = (low + high) / 2
        low, high = (low, ratio) if fits(ratio) else (ratio, high)
    return high


def for_latency(
    candidate: Callable[[float], nn.Module], bench: TorchBench, share: float, most: float
) -> tuple[float, list[dict[str, Any]]]:
    """Return the ratio that leaves no more than ``share`` of the latency, and a row per measurement.

    Args:
        candidate: returns the model at a ratio.
        bench: measures it.
        share: of the uncompressed model's latency.
        most: largest ratio.

    Raises:
        CompressionError: if even the largest ratio leaves more.
    """
    file = bench.folder / _FOUND
    if file.is_file():
        found = storage.read_json(file)
        return found["ratio"], found["tried"]
    tried: list[dict[str, Any]] = []
    measured: dict[str, float] = {}
    with bench.latency() as latency_of:

        def latency(ratio: float) -> float:
            module = candidate(ratio)
            # Many ratios leave the same channels, since those are multiples.
            shapes = str([list(value.shape) for value in module.parameters()])
            if shapes not in measured:
                measured[shapes] = latency_of(module)
                tried.append(left(f"ratio {ratio:.3f}: {measured[shapes]:.1%} of the latency", module))
                log.info("%s", tried[-1]["setting"])
            return measured[shapes]

        if latency(most) > share:
            raise CompressionError(
                field="compress.passes.prune_channels.latency",
                problem="not even the largest ratio makes the model that fast",
                value=share,
                allowed=f"at least {latency(most):.3f}, the smallest share reached",
                fix="allow a larger share of the latency, a larger most, or a smaller multiple",
            )
        found_ratio = smallest(lambda ratio: latency(ratio) <= share, most)
    storage.write_json(file, {"ratio": found_ratio, "tried": tried})
    return found_ratio, tried


def left(setting: str, module: nn.Module, value: float | None = None) -> dict[str, Any]:
    """Return the manifest's row of a candidate or a round."""
    return {
        "setting": setting,
        "value": value,
        "parameters": sum(weights.numel() for weights in module.parameters()),
        "nonzero": sum(int(weights.count_nonzero()) for weights in module.parameters()),
    }
