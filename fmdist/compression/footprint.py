"""Peak memory of one model, in a process that runs nothing else.

``python -m fmdist.compression.footprint JOB.json`` opens the model that the benchmark's job names, runs one
sample a few times and writes ``memory.json``: ``peak_bytes``, the most memory that the process ever held, and
``added_bytes``, how much of that came after the runtime was imported. Exported models load no torch.
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fmdist import storage
from fmdist.deployment.runtime import load_openvino, open_model

_RUNS = 3


def main(job_file: Path) -> None:
    """Run the model and write what it took."""
    job = json.loads(job_file.read_text(encoding="utf-8"))
    folder, model, threads = Path(job["folder"]), job["model"], job["config"]["threads"]
    before, run = (_torch if model["runtime"] == "torch" else _exported)(job, folder, threads)
    for _ in range(_RUNS):
        run()
    peak = _peak_bytes()
    storage.write_json(folder / "memory.json", {"peak_bytes": peak, "added_bytes": peak - before})


def _torch(job: dict[str, Any], folder: Path, threads: int) -> tuple[int, Callable[[], Any]]:
    import torch

    from fmdist.compression.child import load_module

    torch.set_num_threads(threads)
    before = _peak_bytes()
    module = load_module(folder / "module.pt", job["plugins"])
    inputs = torch.load(folder / "one.pt")

    def run() -> Any:
        with torch.inference_mode():
            return module(*inputs)

    return before, run


def _exported(job: dict[str, Any], folder: Path, threads: int) -> tuple[int, Callable[[], Any]]:
    model = job["model"]
    batch = model.get("batch") or 1  # of a graph that takes no other
    inputs = {name: np.load(folder / f"one.{name}.npy").repeat(batch, 0) for name in job["input_names"]}
    if model["runtime"] == "openvino":
        load_openvino()
    else:
        import onnxruntime  # noqa: F401  what is counted begins after it
    before = _peak_bytes()
    session = open_model(Path(model["file"]), model["runtime"], model["precision"], threads)
    return before, lambda: session.run(inputs)


def _peak_bytes() -> int:
    """Return the most memory that this process ever held."""
    status = Path("/proc/self/status")
    if status.exists():
        # On Linux getrusage counts what the parent held before this process became another program.
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main(Path(sys.argv[1]))
