"""Latency and throughput of the original and of every exported model, interleaved, in a fresh process.

``python -m fmdist.compression.benchmark JOB.json`` measures; `measure` writes the job and reads the outcome.
The models take turns in short blocks, so that a change of the machine's speed meets all of them.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmdist import storage
from fmdist.compression.child import load_module, plugin_kinds, run_child, save_module
from fmdist.compression.config import BenchmarkConfig
from fmdist.compression.export import frozen
from fmdist.compression.verification import TORCH_ROW, Model
from fmdist.contracts import ExportSpec
from fmdist.deployment.runtime import open_model

_BLOCK = 5
_FEWEST = 10
_BATCHES = 6


def measure(spec: ExportSpec, models: list[Model], config: BenchmarkConfig, folder: Path) -> dict[str, Any]:
    """Return latency and throughput by model name, `TORCH_ROW` among them, and the conditions.

    Args:
        spec: the original.
        models: from `fmdist.compression.verification.ways`.
        config: threads and sizes.
        folder: an empty folder for the job's files.

    Raises:
        CompressionError: if the process fails, for example because the model's class can't be imported there.
    """
    save_module(frozen(spec.module), folder / "module.pt")
    length = spec.probes[0][1]
    for name, batch in (("one", 1), ("many", config.batch_size)):
        torch.save(spec.example_inputs(batch, length), folder / f"{name}.pt")
    job = {
        "models": [
            {"name": m.name, "file": str(m.file), "runtime": m.runtime, "precision": m.precision}
            for m in models
        ],
        "input_names": list(spec.input_names),
        "plugins": plugin_kinds(),
        "folder": str(folder),
        "config": config.model_dump(mode="json"),
    }
    run_child("fmdist.compression.benchmark", job, folder, threads=config.threads)
    measured: dict[str, Any] = storage.read_json(folder / "measured.json")
    return measured


def main(job_file: Path) -> None:
    """Measure what the job names and write ``measured.json``."""
    job = json.loads(job_file.read_text(encoding="utf-8"))
    folder, config = Path(job["folder"]), job["config"]
    torch.set_num_threads(config["threads"])
    module = load_module(folder / "module.pt", job["plugins"])
    sessions = {
        model["name"]: open_model(
            Path(model["file"]), model["runtime"], model["precision"], config["threads"]
        )
        for model in job["models"]
    }

    def calls(inputs: tuple[torch.Tensor, ...]) -> dict[str, Callable[[], Any]]:
        named = {name: value.numpy() for name, value in zip(job["input_names"], inputs, strict=True)}
        found: dict[str, Callable[[], Any]] = {TORCH_ROW: lambda: module(*inputs)}
        for name, session in sessions.items():
            found[name] = partial(session.run, named)
        return found

    gc.disable()
    deadline = time.perf_counter() + config["max_seconds"]
    with torch.inference_mode():
        one = _interleaved(calls(torch.load(folder / "one.pt")), config["samples"], _FEWEST, deadline)
        many = _interleaved(calls(torch.load(folder / "many.pt")), _BATCHES, 2, deadline)
    rows = {
        name: {
            "latency_ms": {
                "median": float(np.median(seconds)) * 1e3,
                "p10": float(np.percentile(seconds, 10)) * 1e3,
            },
            "throughput_per_s": config["batch_size"] / float(np.median(many[name])),
        }
        for name, seconds in one.items()
    }
    conditions = {
        "threads": config["threads"],
        "batch_size": config["batch_size"],
        "samples": {name: len(seconds) for name, seconds in one.items()},
        "torch_threads": torch.get_num_threads(),
    }
    storage.write_json(folder / "measured.json", {"rows": rows, "conditions": conditions})


def _interleaved(
    calls: dict[str, Callable[[], Any]], samples: int, fewest: int, deadline: float
) -> dict[str, list[float]]:
    """Return the seconds of each call: at least ``fewest``, at most ``samples`` (rounded up to a block)."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    block = min(_BLOCK, fewest)
    done = 0
    while done < samples and (done < fewest or time.perf_counter() < deadline):
        for name, call in calls.items():
            # The first call of a block finds the caches full of another model.
            call()
            for _ in range(block):
                start = time.perf_counter()
                call()
                seconds[name].append(time.perf_counter() - start)
        done += block
    return seconds


if __name__ == "__main__":
    main(Path(sys.argv[1]))
