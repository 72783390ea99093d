"""The compression benchmark runs, with the peers that need no environments of their own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.harness import RESULTS, ROOT

SIDES = {
    "torch, eager": "torch",
    "float32, openvino": "openvino",
    "float32, onnxruntime": "onnxruntime",
    "fmdist quantize, openvino": "openvino",
    "fmdist quantize, onnxruntime": "onnxruntime",
    "fmdist pipeline, openvino": "openvino",
    "fmdist pipeline, onnxruntime": "onnxruntime",
    "nncf": "openvino",
    "onnxruntime": "onnxruntime",
}


@pytest.mark.slow
@pytest.mark.sweep
def test_a_quick_run_scores_and_times_every_side(tmp_path: Path) -> None:
    before = (
        (RESULTS / "compression.json").stat().st_mtime_ns if (RESULTS / "compression.json").exists() else 0
    )
    words = ["-m", "benchmarks.compression", "resnet18", "--quick", "--folder", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, *words, "--peers", "nncf", "onnxruntime"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.partition("resnet18: ")[2])
    rows = {row["side"]: row for row in found["rows"]}
    assert {side: row.get("runtime") for side, row in rows.items()} == SIDES
    assert not [row["error"] for row in rows.values() if "error" in row]
    for row in rows.values():
        assert 0 <= row["accuracy"] <= 1
        assert 0 < row["gzip_bytes"] < row["bytes"]
        assert 0 < row["latency_ms"][0]["p10"] <= row["latency_ms"][0]["median"]
    # The float exports are the original; half of the channels in 8 bits are far less than a quarter of it.
    assert rows["float32, onnxruntime"]["accuracy"] == rows["torch, eager"]["accuracy"]
    assert rows["fmdist pipeline, openvino"]["bytes"] < rows["torch, eager"]["bytes"] / 4
    assert rows["fmdist quantize, openvino"]["executed"]["int8"] > 0
    assert set(found["quantized"]["against"]) == {"nncf", "onnxruntime"}
    assert set(found["quantized"]["bars"]) == {"accuracy", "latency", "size"}
    assert set(found["whole"]["bars"]) == {"smaller", "faster", "accuracy lost"}
    assert found["wall"]["ratio"]["min"] > 0
    after = (
        (RESULTS / "compression.json").stat().st_mtime_ns if (RESULTS / "compression.json").exists() else 0
    )
    assert after == before
