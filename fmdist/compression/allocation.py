"""How much of each layer goes, so that what all lose together is what was asked for.

The sum of the layers' expected costs is made as small as it can be, each by its own measured curve: the next
part that goes is always the one that costs least for its size (Lagrange's rule, of equal marginal costs; as
bits are allocated in Shoham & Gersho 1988). The curves are those of Han et al. 2015 (arXiv:1506.02626), who
chose their thresholds from them by eye.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

Name = TypeVar("Name", bound=Hashable)
"""What a layer is called, or layers that lose theirs together."""

BROKEN = 1e6
"""The cost where the outputs are no longer finite."""


@dataclass(frozen=True)
class Curve:
    """What removing a part of one layer costs."""

    size: float
    """Of the layer, in what is shared out: weights or channels."""
    shares: tuple[float, ...]
    """Rising, in (0, 1)."""
    costs: tuple[float, ...]
    """At each of them, >= 0."""


def share_out(curves: Mapping[Name, Curve], total: float, most: float) -> dict[Name, float]:
    """Return the share of each layer that goes, in [0, most].

    A curve is made convex: between its points, and after the last one, each further part costs at least as
    much as the one before it. Where outputs are spoiled already, more of the same would else seem free.

    Args:
        curves: by layer, at least one.
        total: share of all sizes together that goes, in (0, most].
        most: largest share of any layer, in (0, 1).

    >>> flat, steep = Curve(100, (0.5,), (0.1,)), Curve(100, (0.5,), (0.4,))
    >>> {name: round(share, 3) for name, share in share_out({"a": flat, "b": steep}, 0.5, 0.9).items()}
    {'a': 0.9, 'b': 0.1}
    """
    parts = [(slope, at, name, part) for name in curves for slope, at, part in _parts(curves[name], most)]
    shares = dict.fromkeys(curves, 0.0)
    left = total * sum(curve.size for curve in curves.values())
    # A curve's own parts, whose costs rise, stay in their order.
    for _, _, name, part in sorted(parts, key=lambda item: item[:2]):
        taken = min(part, max(0.0, left / curves[name].size))
        shares[name] += taken
        left -= taken * curves[name].size
    return shares


def in_multiples(
    wanted: Mapping[Name, float], sizes: Mapping[Name, int], multiple: int, most: float
) -> dict[Name, int]:
    """Return how many channels of each layer go, so that those that stay are a multiple, or all.

    The sum stays as near as it can to what is wanted of all together.

    Args:
        wanted: share of each layer that is to go.
        sizes: channels of each layer.
        multiple: of which the kept channels are one.
        most: largest share of any layer.

    >>> in_multiples({"a": 0.7, "b": 0.3}, {"a": 32, "b": 32}, 8, 0.9)
    {'a': 24, 'b': 8}
    """
    asked = {name: share * sizes[name] for name, share in wanted.items()}
    found = {
        name: sizes[name] - min(sizes[name], math.ceil((sizes[name] - count - 1e-9) / multiple) * multiple)
        for name, count in asked.items()
    }
    more = {name: count + ((sizes[name] - count) % multiple or multiple) for name, count in found.items()}
    missing = sum(asked.values()) - sum(found.values())
    # First those that were rounded the furthest down.
    for name in sorted(more, key=lambda name: more[name] - asked[name]):
        step = more[name] - found[name]
        if more[name] <= most * sizes[name] and more[name] < sizes[name] and step <= 2 * missing:
            found[name], missing = more[name], missing - step
    return found


def added(curves: Sequence[Curve]) -> Curve:
    """Return the curve of layers that lose the same share together: their costs are added."""
    costs = zip(*(curve.costs for curve in curves), strict=True)
    return Curve(curves[0].size, curves[0].shares, tuple(map(sum, costs)))


def curve_of(points: Sequence[Mapping[str, Any]], size: float, reference: float) -> Curve:
    """Return a layer's curve from its points of a sensitivity record.

    The cost is the relative RMS difference of the outputs, and on top of it what the primary metric loses,
    over its value of the whole model: the metric says most, and the outputs where it doesn't change.

    Args:
        points: ``{share, drop, error}``, null where the outputs aren't finite.
        size: of the layer.
        reference: the primary metric of the whole model.
    """
    ordered = sorted(points, key=lambda point: float(point["share"]))
    costs = [_cost(point, abs(reference) or 1.0) for point in ordered]
    return Curve(size, tuple(float(point["share"]) for point in ordered), tuple(costs))


def _cost(point: Mapping[str, Any], scale: float) -> float:
    if point["drop"] is None:
        return BROKEN
    return max(0.0, float(point["drop"])) / scale + float(point["error"])


def _parts(curve: Curve, most: float) -> list[tuple[float, float, float]]:
    """Return (cost of each further unit of size, from which share on, for how much of the layer), rising."""
    at = np.array([0.0, *(share for share in curve.shares if share < most), most])
    known = np.array([0.0, *curve.shares])
    costs = np.maximum.accumulate(np.array([0.0, *curve.costs]))
    slopes = np.diff(np.interp(at, known, costs)) / np.diff(at)
    # After the last point nothing is known: the running maximum goes on with the slope before it.
    slopes = np.maximum.accumulate(slopes) / curve.size
    return list(zip(slopes.tolist(), at[:-1].tolist(), np.diff(at).tolist(), strict=True))
