"""Latency, throughput and peak memory of the original and of every exported model, in fresh processes.

``python -m fmdist.compression.benchmark JOB.json`` measures; `measure` writes the job and reads the outcome.
The models take turns in short blocks, so that a change of the machine's speed meets all of them. Memory is
measured by `fmdist.compression.footprint`.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fmdist import storage
from fmdist.compression.child import how_saved, load_module, plugin_kinds, run_child, save_module
from fmdist.compression.config import BenchmarkConfig
from fmdist.compression.export import export_program, frozen
from fmdist.compression.original import Hosted, Original, way_of
from fmdist.compression.verification import Model, row_name
from fmdist.contracts import ExportSpec
from fmdist.deployment.runtime import open_model

COMPILED = "torch-fp32-compiled"
"""The original through `torch.compile`."""

_BLOCK = 5
_FEWEST = 10
_BATCHES = 6


def measure(spec: ExportSpec, models: list[Model], config: BenchmarkConfig, folder: Path) -> dict[str, Any]:
    """Return latency, throughput and memory by model name, the original among them, and the conditions.

    ``compiled`` holds those of `COMPILED` with ``seconds`` that compiling took and ``difference``, the
    largest from eager's outputs relative to the largest output; or ``left``, why it wasn't measured.

    Args:
        spec: the original.
        models: from `fmdist.compression.verification.ways`.
        config: threads and sizes.
        folder: an empty folder for the job's files.

    Raises:
        CompressionError: if the process fails, for example because the model's class can't be imported there.
    """
    graph = spec.module.original if isinstance(spec.module, Hosted) else None
    if graph is None:
        save_module(frozen(spec.module), folder / "module.pt", lambda: export_program(spec))
    length = spec.probes[0][1]
    for name, batch in (("one", 1), ("many", config.batch_size)):
        torch.save(spec.example_inputs(batch, length), folder / f"{name}.pt")
    for name, value in zip(spec.input_names, spec.example_inputs(1, length), strict=True):
        np.save(folder / f"one.{name}.npy", value.numpy())
    exported = [
        {"name": m.name, "file": str(m.file), "runtime": m.runtime, "precision": m.precision} for m in models
    ]
    original: dict[str, Any] = {"name": row_name(*way_of(spec.module)), "runtime": "torch"}
    if graph is not None:
        file, precision = str(graph.file), graph.precision
        original |= {"runtime": graph.runtime, "file": file, "precision": precision, "batch": graph.batch}
    job = {
        "models": exported,
        "original": original,
        "input_names": list(spec.input_names),
        "plugins": plugin_kinds(),
        "folder": str(folder),
        "config": config.model_dump(mode="json"),
    }
    run_child("fmdist.compression.benchmark", job, folder, threads=config.threads)
    measured: dict[str, Any] = storage.read_json(folder / "measured.json")
    if config.memory:
        for model in [original, *exported]:
            run_child("fmdist.compression.footprint", {**job, "model": model}, folder, threads=config.threads)
            measured["rows"][model["name"]]["memory"] = storage.read_json(folder / "memory.json")
    return measured


def main(job_file: Path) -> None:
    """Measure what the job names and write ``measured.json``."""
    job = json.loads(job_file.read_text(encoding="utf-8"))
    folder, config = Path(job["folder"]), job["config"]
    torch.set_num_threads(config["threads"])
    original = job["original"]
    module, run_original = _opened(job)
    sessions = {
        model["name"]: open_model(
            Path(model["file"]), model["runtime"], model["precision"], config["threads"]
        )
        for model in job["models"]
    }

    one_sample, batch = torch.load(folder / "one.pt"), torch.load(folder / "many.pt")
    compiled, about_compiling = _compiled(module, (one_sample, batch), config["torch_compile"])

    def calls(inputs: tuple[torch.Tensor, ...]) -> dict[str, Callable[[], Any]]:
        named = {name: value.numpy() for name, value in zip(job["input_names"], inputs, strict=True)}
        found: dict[str, Callable[[], Any]] = {original["name"]: partial(run_original, inputs, named)}
        if compiled is not None:
            found[COMPILED] = lambda: compiled(*inputs)
        for name, session in sessions.items():
            found[name] = partial(session.run, named)
        return found

    gc.disable()
    deadline = time.perf_counter() + config["max_seconds"]
    with torch.inference_mode():
        one = interleaved(calls(one_sample), config["samples"], _FEWEST, deadline)
        many = interleaved(calls(batch), _BATCHES, 2, deadline)
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
        "original": "graph" if module is None else how_saved(folder / "module.pt"),
    }
    about_compiling |= rows.pop(COMPILED, {})
    measured = {"rows": rows, "conditions": conditions, "compiled": about_compiling}
    storage.write_json(folder / "measured.json", measured)


def _opened(job: dict[str, Any]) -> tuple[nn.Module | None, Callable[..., Any]]:
    """Return the original, if it is a module, and what runs it on inputs in order or by name."""
    original = job["original"]
    if original["runtime"] == "torch":
        module = load_module(Path(job["folder"]) / "module.pt", job["plugins"])
        return module, lambda inputs, _: module(*inputs)
    graph = Original(original["runtime"], Path(original["file"]), original["batch"])
    session = graph.open(job["config"]["threads"])
    return None, lambda _, named: session.run(named)


def _compiled(
    module: nn.Module | None, inputs: Sequence[tuple[torch.Tensor, ...]], wanted: bool
) -> tuple[Callable[..., Any] | None, dict[str, Any]]:
    """Return the module compiled for these inputs, if that is possible, and how that went."""
    if not wanted or module is None:
        return None, {"left": "the original is no torch module" if wanted else "not asked for"}
    start = time.perf_counter()
    # Shapes that are free cost speed, and both sizes are known.
    compiled: Callable[..., Any] = torch.compile(module, dynamic=False)
    with torch.inference_mode():
        try:
            found = [(compiled(*given), module(*given)) for given in inputs]
        # What Dynamo and Inductor raise has no common base; without a C++ compiler it is a RuntimeError.
        except Exception as error:
            return None, {"left": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    seconds = time.perf_counter() - start
    difference = max(float((ours - eager).abs().max() / eager.abs().max()) for ours, eager in found)
    return compiled, {"seconds": round(seconds, 3), "difference": difference}


def interleaved(
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
