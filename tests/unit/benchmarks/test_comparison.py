"""What the compression benchmark concludes from its rows."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.compression_peers import comparison
from benchmarks.compression_peers.comparison import ORIGINAL, OURS, WHOLE
from benchmarks.compression_peers.subjects import CASES


def row(
    side: str, runtime: str, latencies: list[float], size: int = 100, accuracy: float = 0.9
) -> dict[str, Any]:
    return {
        "side": side,
        "runtime": runtime,
        "accuracy": accuracy,
        "bytes": size,
        "gzip_bytes": size // 2,
        "latency_ms": [{"median": latency, "p10": latency} for latency in latencies],
    }


def ours(latencies: list[float], size: int = 100, accuracy: float = 0.9) -> list[dict[str, Any]]:
    slow = [2 * latency for latency in latencies]
    return [
        row(OURS[0], "openvino", latencies, size, accuracy),
        row(OURS[1], "onnxruntime", slow, size, accuracy),
    ]


def test_ratios_are_of_the_same_round() -> None:
    # The machine slowed down to a half, for both alike.
    found = comparison.ratio(row("a", "torch", [1.0, 2.0]), row("b", "torch", [2.0, 4.0], size=200))
    assert found["latency"] == {"min": 0.5, "median": 0.5, "max": 0.5}
    assert (found["bytes"], found["gzip_bytes"]) == (0.5, 0.5)


def test_each_peer_is_compared_with_our_model_for_its_runtime() -> None:
    rows = [
        *ours([1.0]),
        row(ORIGINAL, "torch", [9.0]),
        row("nncf", "openvino", [1.0]),
        row("olive", "onnxruntime", [1.0]),
        row("torchao", "torch", [4.0]),
        {"side": "neural-compressor", "error": "can't be installed"},
    ]
    found = comparison.quantized(rows, ["nncf", "olive", "torchao", "neural-compressor"])
    ratios = {side: facts["latency"]["median"] for side, facts in found["against"].items()}
    assert ratios == {"nncf": 1.0, "olive": 2.0, "torchao": 0.25}
    assert found["held"] == OURS[0]


@pytest.mark.parametrize(
    ("mine", "missed"),
    [
        (ours([1.05], 102, 0.897), []),
        (ours([1.06], 102, 0.897), ["latency"]),
        (ours([1.05], 103, 0.897), ["size"]),
        (ours([1.05], 102, 0.896), ["accuracy"]),
    ],
)
def test_bars_are_the_best_peer_of_each_measure(mine: list[dict[str, Any]], missed: list[str]) -> None:
    peers = [
        row("nncf", "openvino", [1.0], 150, 0.892),
        row("olive", "onnxruntime", [9.0], 100, 0.9),
        row("torchao", "torch", [0.1], 10, 0.7),
    ]
    original = row(ORIGINAL, "torch", [9.0])
    found = comparison.quantized([original, *mine, *peers], ["nncf", "olive", "torchao"])
    bars = found["bars"]
    assert found["useless"] == ["torchao"]
    assert [name for name, bar in bars.items() if not bar["met"]] == missed


def test_accuracies_are_means_over_calibration_sets() -> None:
    (mine, slower), peer = ours([1.0], 100, 0.89), row("nncf", "openvino", [1.0], 100, 0.9)
    mine["accuracies"], peer["accuracies"] = [0.89, 0.9, 0.901], [0.9, 0.89, 0.902]
    found = comparison.quantized([row(ORIGINAL, "torch", [9.0]), mine, slower, peer], ["nncf"])
    assert found["against"]["nncf"]["accuracy_difference"] == pytest.approx(-0.001 / 3)
    assert found["bars"]["accuracy"]["met"]


def test_no_bar_is_met_where_no_peer_ran() -> None:
    rows = [row(ORIGINAL, "torch", [9.0]), *ours([1.0]), {"side": "nncf", "error": "fails"}]
    assert comparison.quantized(rows, ["nncf"])["bars"] == {}


@pytest.mark.parametrize(
    ("size", "latency", "accuracy", "missed"),
    [
        (100, 1.0, 0.89, []),
        (101, 1.0, 0.89, ["smaller"]),
        (100, 1.01, 0.89, ["faster"]),
        (100, 1.0, 0.88, ["accuracy lost"]),
    ],
)
def test_the_pipeline_is_held_against_the_original(
    size: int, latency: float, accuracy: float, missed: list[str]
) -> None:
    rows = [row(ORIGINAL, "torch", [8.0], 1200), row(WHOLE[0], "openvino", [latency], size, accuracy)]
    bars = comparison.whole(rows, CASES["resnet18"])["bars"]
    assert [name for name, bar in bars.items() if not bar["met"]] == missed


def test_wall_time_has_a_constant_and_a_share() -> None:
    assert comparison.wall([32.0, 140.0], [10.0, 100.0])["met"]
    assert not comparison.wall([32.1], [10.0])["met"]
