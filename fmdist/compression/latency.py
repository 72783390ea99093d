"""How fast a candidate is beside the original, measured as it would be deployed.

What decides latency is a model's architecture: training it afterwards changes nothing about it, so
candidates are measured with whatever weights they have.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fmdist.compression.benchmark import interleaved
from fmdist.compression.export import export_models
from fmdist.compression.ownership import scratch
from fmdist.contracts import ExportSpec
from fmdist.deployment.runtime import Inputs, open_model

_SAMPLES, _FEWEST, _SECONDS = 200, 20, 5.0


@contextmanager
def against(original: ExportSpec, spec: ExportSpec, folder: Path) -> Iterator[Callable[[nn.Module], float]]:
    """Yield what returns a module's latency in OpenVINO over that of ``original``.

    Args:
        original: whose latency counts as 1.
        spec: by which the modules are exported.
        folder: for the exported models, which are removed afterwards.

    Raises:
        CompressionError: if OpenVINO can't convert a module.
    """
    with scratch(folder) as place:
        named = dict(
            zip(original.input_names, original.example_inputs(1, original.probes[0][1]), strict=True)
        )
        inputs = {name: value.numpy() for name, value in named.items()}

        def export(made: ExportSpec, name: str) -> Path:
            files = place / name
            files.mkdir()
            export_models(made, {"openvino": files / "model.xml"}, files)
            return files / "model.xml"

        reference = export(original, "original")
        tried = 0

        def measure(module: nn.Module) -> float:
            nonlocal tried
            tried += 1
            return ratio(reference, export(replace(spec, module=module), str(tried)), inputs)

        yield measure


def ratio(original: Path, candidate: Path, inputs: Inputs) -> float:
    """Return the median latency of one OpenVINO file over that of another, interleaved, at one thread.

    Args:
        original: the divisor.
        candidate: the dividend.
        inputs: of both, one sample, by name.
    """
    files = {"original": original, "candidate": candidate}
    sessions = {name: open_model(file, "openvino", threads=1) for name, file in files.items()}
    calls: dict[str, Callable[[], Any]] = {
        name: partial(session.run, inputs) for name, session in sessions.items()
    }
    collecting = gc.isenabled()
    gc.disable()
    try:
        seconds = interleaved(calls, _SAMPLES, _FEWEST, time.perf_counter() + _SECONDS)
    finally:
        if collecting:
            gc.enable()
    return float(np.median(seconds["candidate"]) / np.median(seconds["original"]))
