"""Run the models of all sides in one process, in turns of a few calls, and write outputs and latencies.

``python -m benchmarks.compression_peers.scorer JOB.json`` is run afresh for every round, where torchao can be
imported: the programs of two peers are made of its operators.
"""

from __future__ import annotations

import gc
import importlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from fmdist.deployment.runtime import load_openvino, open_model

BLOCK = 5
BATCH = 64

Call = Callable[[NDArray[Any]], NDArray[Any]]


def main() -> None:
    """Score and time what the job names."""
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    folder, name = Path(job["folder"]), job["input"]
    timed, test = np.load(job["timed"]), np.load(job["test"])
    records: dict[str, dict[str, Any]] = {}
    calls: dict[str, Callable[[], Any]] = {}
    with torch.no_grad():
        for side, model in job["models"].items():
            # One side that its own runtime can't run is a result, and no reason to lose the others.
            try:
                records[side] = {}
                if job["score"]:
                    records[side] = score(model, name, test, folder / f"{side}.npy")
                if not job["samples"]:
                    continue
                call = ready(resized(model, name, timed.shape, folder, side), name)
                records[side]["timed_output"] = call(timed).astype(float).ravel().tolist()
                calls[side] = lambda call=call: call(timed)  # type: ignore[misc]
            except Exception as error:
                records[side] = {"error": f"{type(error).__name__}: {error}".strip().splitlines()[0]}
        for side, seconds in interleaved(calls, job["samples"]).items():
            records[side]["latency_ms"] = {
                "median": float(np.median(seconds)) * 1e3,
                "p10": float(np.percentile(seconds, 10)) * 1e3,
            }
    (folder / "measured.json").write_text(json.dumps(records))


def score(model: dict[str, str], name: str, test: NDArray[Any], file: Path) -> dict[str, Any]:
    """Write the outputs over the test samples; return in which precisions the layers ran, if known."""
    # Exported programs have the shape of one sample.
    size = 1 if model["file"].endswith(".pt2") else BATCH
    call = ready(model, name)
    np.save(file, np.concatenate([call(test[at : at + size]) for at in range(0, len(test), size)]))
    if model["runtime"] == "torch":
        return {}
    return {"executed": dict(Counter(open_model(Path(model["file"]), model["runtime"]).executed()))}


def ready(model: dict[str, str], name: str) -> Call:
    """Return what runs a model file on an array (B, ...), at one thread, in the runtime's own precision."""
    file = Path(model["file"])
    if model["runtime"] != "torch":
        session = open_model(file, model["runtime"], threads=1)
        return lambda values: session.run({name: values})
    module = _compiled(file) if file.suffix == ".pt2" else torch.load(file, weights_only=False)
    return lambda values: np.asarray(module(torch.from_numpy(values)).numpy())


def _compiled(file: Path) -> Any:
    from torch._inductor import config

    # Registers the programs' operators, and with inductor what makes INT8 kernels of them.
    importlib.import_module("torchao.quantization.pt2e.quantizer.x86_inductor_quantizer")
    config.freezing = True
    return torch.compile(torch.export.load(file).module())


def resized(
    model: dict[str, str], name: str, shape: tuple[int, ...], folder: Path, side: str
) -> dict[str, str]:
    """Return a copy of a finished model whose input has another shape but for the batch; pooling adapts."""
    if "timed" in model:
        return {**model, "file": model["timed"]}
    if len(shape) != 4 or model["runtime"] == "torch":
        return model
    file = folder / f"{side}.timed{Path(model['file']).suffix}"
    if model["runtime"] == "openvino":
        openvino = load_openvino()
        network = openvino.Core().read_model(model["file"])
        network.reshape({name: [-1, *shape[1:]]})
        openvino.save_model(network, str(file), compress_to_fp16=False)
        return {**model, "file": str(file)}
    graph = onnx.load(model["file"])
    for axis, size in enumerate(shape[1:], 1):
        graph.graph.input[0].type.tensor_type.shape.dim[axis].dim_value = size
    # Shapes that were inferred for the old input.
    graph.graph.ClearField("value_info")
    onnx.save(graph, file)
    return {**model, "file": str(file)}


def interleaved(calls: dict[str, Callable[[], Any]], samples: int) -> dict[str, list[float]]:
    """Return the seconds of each call, ``samples`` rounded up to a block.

    Every turn has another order: always behind the same one, a model was up to 4% slower than its own copy.
    """
    seconds: dict[str, list[float]] = {side: [] for side in calls}
    order = random.Random(0)
    gc.disable()
    for _ in range(-(-samples // BLOCK)):
        for side in order.sample(list(calls), len(calls)):
            # The first call of a block finds the caches full of another model.
            calls[side]()
            for _ in range(BLOCK):
                start = time.perf_counter()
                calls[side]()
                seconds[side].append(time.perf_counter() - start)
    return seconds


if __name__ == "__main__":
    main()
