"""What torchao and Intel Neural Compressor share: torch programs of one shape, calibrated and written."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.compression_peers.job import Job, tell

Quantize = Callable[[nn.Module, tuple[Tensor], Iterable[Tensor]], Any]
"""Takes the module, an example and calibration samples, all of one shape; returns the converted module."""

FEW = 8
"""Samples that calibrate a program that is only timed."""


def write_programs(job: Job, quantize: Quantize) -> None:
    """Quantize for the shape that is scored, and again where another one is timed; say what was made.

    The programs are exported for one sample of one shape, which is what `torch.compile` runs fastest.
    """
    began = time.perf_counter()
    rows, scored, timed = job.rows(), np.load(job.test, mmap_mode="r")[:1], np.load(job.timed)
    models = {"torch": str(Path(job.output) / "model.pt2")}
    write(job, quantize, fitted(rows, scored.shape[1:]), Path(models["torch"]))
    seconds = time.perf_counter() - began
    if timed.shape != scored.shape:
        models["timed"] = str(Path(job.output) / "timed.pt2")
        write(job, quantize, fitted(rows[:FEW], timed.shape[1:]), Path(models["timed"]))
    # The second program is for the benchmark's own use and no part of making the model.
    tell(job, time.perf_counter() - seconds, models, "one program per input shape")


def write(job: Job, quantize: Quantize, rows: NDArray[Any], file: Path) -> None:
    """Quantize on ``rows`` and write the exported program."""
    module: nn.Module = torch.load(job.module, weights_only=False)
    samples = [torch.from_numpy(np.array(row[None])) for row in rows]
    with torch.no_grad():
        converted = quantize(module, (samples[0],), samples)
        without_unused(converted)
        torch.export.save(torch.export.export(converted, (samples[0],)), file)


def without_unused(module: Any) -> None:
    """Remove the parameters and buffers that the graph doesn't read: conversion leaves float weights."""
    read = {node.target for node in module.graph.nodes if node.op == "get_attr"}
    for name, _ in [*module.named_parameters(), *module.named_buffers()]:
        if name not in read:
            owner, _, attribute = name.rpartition(".")
            delattr(module.get_submodule(owner), attribute)


def fitted(rows: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Return samples in another shape: token ids (N, T) padded with zeros, images (N, C, H, W) repeated."""
    if rows.shape[1:] == shape:
        return rows
    if rows.ndim == 2:
        return np.pad(rows, ((0, 0), (0, shape[0] - rows.shape[1])))
    enlarged: NDArray[Any] = np.kron(
        rows, np.ones((1, 1, shape[1] // rows.shape[2], shape[2] // rows.shape[3]))
    )
    return enlarged.astype(rows.dtype)
