"""What the main job is worth: five seeds of ``recipes/digits.yaml``, trained, compressed and scored.

Run with ``make bench`` or ``python -m benchmarks.digits``; takes about 6 minutes on 2 cores. A seed decides
the split, the weights and every draw. Reported: test accuracy in torch and in each runtime, size ratio,
parity.
"""

from __future__ import annotations

import logging
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import ROOT, conclude, spread
from fmdist import stages, storage

SEEDS = range(5)


def one(seed: int, folder: Path) -> dict[str, Any]:
    """Train, compress and verify one seed; return its figures."""
    began = time.perf_counter()
    trained = stages.train(
        ROOT / "recipes" / "digits.yaml", output=folder / "run", overrides=[f"seed={seed}"]
    )
    trained_s = time.perf_counter() - began
    artifact = stages.compress(trained.folder, output=folder / "artifact")
    manifest = storage.read_json(artifact / storage.MANIFEST)
    return {
        "seed": seed,
        "train_seconds": trained_s,
        "compress_seconds": time.perf_counter() - began - trained_s,
        "parameters": manifest["parameters"],
        "test_size": manifest["evaluation"]["test_size"],
        "results": manifest["results"],
        "parity": max(row["relative"] for row in manifest["parity"]),
    }


def main() -> int:
    """Measure, write results/digits.json, return 1 if a bar is missed."""
    logging.basicConfig(level=logging.WARNING)
    runs = []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as name:
            runs.append(one(seed, Path(name)))
        accuracy = runs[-1]["results"][0]["value"]
        sys.stdout.write(
            f"seed {seed}: accuracy {accuracy:.4f}, {runs[-1]['train_seconds']:.0f} s to train\n"
        )
    rows: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for row in run["results"]:
            columns = rows.setdefault(f"{row['runtime']} {row['variant']} {row['precision']}", {})
            columns.setdefault("accuracy", []).append(row["value"])
            columns.setdefault("drop", []).append(row["drop"])
            if row["size_ratio"] is not None:
                columns.setdefault("size_ratio", []).append(row["size_ratio"])
            if row["speedup"] is not None:
                columns.setdefault("speedup", []).append(row["speedup"])
                columns.setdefault("latency_ms", []).append(row["latency_ms"]["median"])
    table = {
        name: {
            column: spread(values) | {"mean": statistics.fmean(values)} for column, values in columns.items()
        }
        for name, columns in rows.items()
    }
    int8 = {name: columns for name, columns in table.items() if "int8" in name}
    bars = {
        "parameters at least 300,000": min(run["parameters"] for run in runs) >= 300_000,
        "median accuracy at least 0.985": table["torch fp32 f32"]["accuracy"]["median"] >= 0.985,
        "INT8 loses at most 0.005 on average": all(row["drop"]["mean"] <= 0.005 for row in int8.values()),
        "OpenVINO INT8 at most 0.30 of FP32": table["openvino int8 default"]["size_ratio"]["max"] <= 0.30,
        "parity at most 1e-5": max(run["parity"] for run in runs) <= 1e-5,
    }
    for name, summary in table.items():
        figures = "  ".join(f"{column} {values['median']:.4g}" for column, values in summary.items())
        sys.stdout.write(f"{name:<28} {figures}\n")
    return conclude("digits", bars, {"table": table, "runs": runs})


if __name__ == "__main__":
    sys.exit(main())
