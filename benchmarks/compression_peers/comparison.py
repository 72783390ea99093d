"""Ratios of the sides, with their spread over the rounds, and the bars that they must meet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.compression_peers.subjects import Case
from benchmarks.harness import spread

ORIGINAL = "torch, eager"
OURS = ("fmdist quantize, openvino", "fmdist quantize, onnxruntime")
WHOLE = ("fmdist pipeline, openvino", "fmdist pipeline, onnxruntime")

ACCURACY, LATENCY, SIZE = 0.003, 1.05, 1.02
"""Quantized alone: how far from the best peer its accuracy, latency and size may be."""
LOST = 0.01
"""The whole pipeline: how much accuracy it may cost."""
SLACK = 1e-9
"""For the rounding of differences of shares."""

Row = Mapping[str, Any]
"""``side``, ``runtime``, ``accuracy``, ``bytes``, ``gzip_bytes``, and ``latency_ms``: one per round.
``accuracies`` of models that were calibrated on other samples too, the first of them ``accuracy``."""


def measured(rows: Sequence[Row]) -> dict[str, Row]:
    """Return the rows that have figures, by side."""
    return {row["side"]: row for row in rows if "error" not in row}


def medians(row: Row) -> list[float]:
    """Return the median latency of every round, ms."""
    return [round_["median"] for round_ in row["latency_ms"]]


def accuracy(row: Row) -> float:
    """Return the mean over the calibration sets."""
    found: Sequence[float] = row.get("accuracies", [row["accuracy"]])
    return sum(found) / len(found)


def ratio(row: Row, other: Row) -> dict[str, Any]:
    """Return how ``row`` compares with ``other``: latencies of the same round, so that drift cancels."""
    pairs = zip(medians(row), medians(other), strict=True)
    return {
        "accuracy_difference": accuracy(row) - accuracy(other),
        "latency": spread([own / its for own, its in pairs]),
        "bytes": row["bytes"] / other["bytes"],
        "gzip_bytes": row["gzip_bytes"] / other["gzip_bytes"],
    }


def quantized(rows: Sequence[Row], peers: Sequence[str]) -> dict[str, Any]:
    """Return fmdist's quantized models against each peer; bars are judged against all peers that ran.

    A peer is compared with our model for its own runtime, or with OpenVINO's where there is none. What a user
    runs of an artifact is its fastest model; that one is held against the best of the peers in each measure.
    Those that lose more than `LOST` set no bar: a model that no longer answers may well be smaller.
    """
    found = measured(rows)
    ours = {found[side]["runtime"]: found[side] for side in OURS}
    others = [found[side] for side in peers if side in found]
    against = {row["side"]: ratio(ours.get(row["runtime"], ours["openvino"]), row) for row in others}
    fastest = min(ours.values(), key=lambda row: min(medians(row)))
    bars = {}
    least = found[ORIGINAL]["accuracy"] - LOST - SLACK
    useless = [row["side"] for row in others if accuracy(row) < least]
    others = [row for row in others if row["side"] not in useless]
    if others:
        behind = accuracy(fastest) - max(accuracy(row) for row in others)
        quickest = min(others, key=lambda row: spread(medians(row))["median"])
        smallest = min(row["bytes"] for row in others)
        latency = ratio(fastest, quickest)["latency"]
        bars = {
            "accuracy": _bar(behind, -ACCURACY, behind >= -ACCURACY - SLACK),
            "latency": _bar(latency, LATENCY, latency["median"] <= LATENCY) | {"peer": quickest["side"]},
            "size": _bar(fastest["bytes"] / smallest, SIZE, fastest["bytes"] <= SIZE * smallest),
        }
    return {"against": against, "held": fastest["side"], "useless": useless, "bars": bars}


def whole(rows: Sequence[Row], case: Case) -> dict[str, Any]:
    """Return the whole pipeline's models against the original, and whether the faster one meets the bars."""
    found = measured(rows)
    original = found[ORIGINAL]
    ours = {side: found[side] for side in WHOLE if side in found}
    results = {}
    for side, row in ours.items():
        compared = ratio(original, row)
        results[side] = {
            "smaller": compared["bytes"],
            "faster": compared["latency"],
            "accuracy_lost": compared["accuracy_difference"],
        }
    held = min(ours, key=lambda side: min(medians(ours[side])))
    figures = results[held]
    bars = {
        "smaller": _bar(figures["smaller"], case.smaller, figures["smaller"] >= case.smaller),
        "faster": _bar(figures["faster"], case.faster, figures["faster"]["median"] >= case.faster),
        "accuracy lost": _bar(figures["accuracy_lost"], LOST, figures["accuracy_lost"] <= LOST + SLACK),
    }
    return {"models": results, "held": held, "bars": bars}


def wall(ours: Sequence[float], bare: Sequence[float]) -> dict[str, Any]:
    """Return the seconds of the pipeline and of the bare calls, and whether the first stay within the bar."""
    allowed = [1.2 * seconds + 20 for seconds in bare]
    met = all(own <= limit for own, limit in zip(ours, allowed, strict=True))
    ratios = [own / its for own, its in zip(ours, bare, strict=True)]
    return {"fmdist": spread(ours), "bare": spread(bare), "ratio": spread(ratios), "met": met}


def _bar(value: Any, limit: float, met: bool) -> dict[str, Any]:
    return {"value": value, "limit": limit, "met": bool(met)}
