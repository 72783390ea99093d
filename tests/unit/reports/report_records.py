"""Folders as a run and a compression leave them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def write_run(folder: Path, history: bool = True) -> Path:
    """Write what every run records."""
    folder.mkdir()
    run = {
        "format": 2,
        "name": "digits",
        "status": "finished",
        "created": "2026-01-02T03:04:05Z",
        "updated": "2026-01-02T03:05:05Z",
        "seconds": 64.2,
        "epoch": 2,
        "step": 20,
        "primary": {"name": "accuracy", "mode": "max", "value": 0.8125},
        "metrics": {"accuracy": 0.7, "loss": 0.7},
        "versions": {"torch": "2.14.1"},
        "hardware": {"cpu": "test CPU", "cores": 2},
        "parameters": 317_002,
        "best_step": 20,
    }
    (folder / "run.json").write_text(json.dumps(run))
    if history:
        lines = [
            {"epoch": 1, "step": 5, "split": "train", "loss": 2.0, "lr": 0.1, "samples_per_s": 5000.0},
            {"epoch": 1, "step": 10, "split": "train", "loss": 1.0, "lr": 0.1},
            {"epoch": 1, "step": 10, "split": "validation", "loss": 0.9, "accuracy": 0.75},
            {"epoch": 2, "step": 20, "split": "train", "loss": 0.5, "lr": 0.05},
            {"epoch": 2, "step": 20, "split": "validation", "loss": 0.51, "accuracy": 0.8125},
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def write_evaluation(
    run: Path,
    record: dict[str, Any],
    outputs: NDArray[np.float32],
    target: NDArray[Any],
    images: NDArray[np.uint8] | None = None,
) -> None:
    """Write a test split's record, outputs and, if given, the images of its first samples."""
    folder = run / "evaluation"
    folder.mkdir()
    (folder / "test.json").write_text(json.dumps(record))
    np.savez(folder / "test.npz", outputs=outputs, target=target, index=np.arange(len(target)))
    if images is not None:
        np.savez(folder / "examples.npz", image=images, index=np.arange(len(images)))


def class_record(names: list[str], size: int, baseline: float = 0.25) -> dict[str, Any]:
    """Return the ``test.json`` of a classification."""
    return {
        "split": "test",
        "size": size,
        "metrics": {"loss": 0.4, "accuracy": 0.75},
        "primary": "accuracy",
        "mode": "max",
        "interval": [0.6, 0.85],
        "baseline": {"accuracy": baseline},
        "target": {"kind": "class", "names": names},
        "rule": "class",
    }


def logits(predicted: list[int], classes: int) -> NDArray[np.float32]:
    """Return outputs (N, classes) that predict the given classes, each surer than the one before."""
    outputs = np.zeros((len(predicted), classes), dtype=np.float32)
    outputs[np.arange(len(predicted)), predicted] = 1 + np.arange(len(predicted))
    return outputs


def result(runtime: str, variant: str, precision: str, **changes: Any) -> dict[str, Any]:
    """Return one row of a manifest's results."""
    return {
        "runtime": runtime,
        "variant": variant,
        "precision": precision,
        "executed": {} if runtime == "torch" else {"int8" if variant == "int8" else "f32": 6},
        "metrics": {"accuracy": 0.9852},
        "value": 0.9852,
        "drop": 0.0,
        "bytes": 1_270_000,
        "gzip_bytes": 1_150_000,
        "size_ratio": 1.0,
        "latency_ms": {"median": 0.41, "p10": 0.39},
        "throughput_per_s": 9000.0,
        "speedup": 1.0,
    } | changes


def manifest(**changes: Any) -> dict[str, Any]:
    """Return an artifact's manifest with the keys that `fmdist.compression.manifest` documents."""
    small: dict[str, Any] = {"value": 0.9815, "drop": 0.0037, "bytes": 350_000, "gzip_bytes": 290_000}
    small |= {"size_ratio": 0.2756}
    candidate = {
        "runtime": "openvino",
        "setting": "no bias correction",
        "values": {"default": 0.9778, "f32": 0.9815},
        "value": 0.9778,
        "drop": 0.0037,
        "error": 0.031,
        "seconds": 1.2,
        "chosen": True,
    }
    left = {
        "name": "head",
        "type": "MatMul",
        "shape": [128, 10],
        "parameters": 1280,
        "reason": "ignored scope",
    }
    stages = [{"name": "01-export", "seconds": 3.1}, {"name": "02-quantize", "seconds": 8.4}]
    return {
        "format": 4,
        "kind": "artifact",
        "name": "digits-int8",
        "created": "2026-01-02T03:10:05Z",
        "source": "runs/digits",
        "fingerprint": "ab" * 32,
        "seed": 0,
        "signature": {
            "inputs": [{"name": "image", "shape": [None, 1, 8, 8], "dtype": "float32"}],
            "outputs": [{"name": "output", "shape": [None, 10], "dtype": "float32"}],
        },
        "preprocessing": {"kind": "image", "mean": [0.3], "std": [0.4]},
        "target": {"kind": "class", "names": ["0", "1"]},
        "labels": ["0", "1"],
        "decoding": {"rule": "class", "names": ["0", "1"]},
        "primary": {"name": "accuracy", "mode": "max", "max_drop": 0.01},
        "parameters": 317_002,
        "models": {},
        "results": [
            result("torch", "fp32", "f32"),
            result("openvino", "fp32", "f32", speedup=3.1, latency_ms={"median": 0.132, "p10": 0.13}),
            result(
                "openvino", "int8", "default", speedup=6.2, latency_ms={"median": 0.066, "p10": 0.06}, **small
            ),
            result(
                "onnxruntime",
                "int8",
                "default",
                latency_ms=None,
                throughput_per_s=None,
                speedup=None,
                **small,
            ),
        ],
        "parity": [
            {
                "runtime": "openvino",
                "variant": "fp32",
                "batch": 5,
                "max_abs_difference": 2e-6,
                "max_abs_reference": 11.2,
                "relative": 1.8e-7,
                "tolerance": 1e-5,
            }
        ],
        "validation": {"torch": {"accuracy": 0.9815}, "size": 270},
        "passes": [
            {
                "stage": "02-quantize",
                "kind": "quantize",
                "on": "exported",
                "config": {"kind": "quantize"},
                "seconds": 8.4,
                "candidates": [candidate],
                "coverage": {
                    "openvino": {
                        "layers": 7,
                        "changed_layers": 6,
                        "parameters": 317_002,
                        "changed_parameters": 315_722,
                        "left": [left],
                    }
                },
                "before": {},
                "after": {},
            }
        ],
        "stages": stages,
        "benchmark": {"threads": 1, "batch_size": 64, "samples": {"openvino-int8": 200}, "torch_threads": 1},
        "torch_compile": {"left": "not asked for"},
        "evaluation": {"test_size": 270, "validation_size": 270, "calibration_size": 300},
        "hardware": {"cpu": "test CPU", "cores": 2, "flags": ["avx2", "avx512_vnni"], "system": "Linux"},
        "versions": {"fmdist": "0.1.0", "openvino": "2025.4"},
        "recipe": {"name": "digits", "compress": {"max_drop": 0.01}},
        "files": {},
    } | changes


def write_artifact(folder: Path, **changes: Any) -> Path:
    """Write a folder with a manifest."""
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps(manifest(**changes)))
    return folder
