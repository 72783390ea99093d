"""Score what was written, not a simulation of it: in a fresh process that can load no model code.

Shapes: B batch, N samples, S numbers that a sample's score takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fmdist import storage
from fmdist.compression.child import run_child
from fmdist.compression.export import frozen
from fmdist.compression.original import TORCH, Hosted, way_of
from fmdist.compression.subject import Subject, drop, score, torch_rows, write_batch
from fmdist.contracts import ExportSpec
from fmdist.errors import CompressionError

TOLERANCE = 1e-5
"""Allowed max|difference| / max|reference| of FP32 outputs from torch's."""


def row_name(runtime: str, variant: str, precision: str) -> str:
    """Return a name for the files and records of one way to run the model."""
    return f"{runtime}-{variant}-{precision}"


TORCH_ROW = row_name(*TORCH)
"""The original, eager."""


@dataclass(frozen=True)
class Model:
    """One way to run the artifact."""

    runtime: str
    variant: str
    precision: str
    file: Path

    @property
    def name(self) -> str:
        """See `row_name`."""
        return row_name(self.runtime, self.variant, self.precision)


def ways(models: Mapping[str, Mapping[str, Path]]) -> list[Model]:
    """Return every way to run the models: OpenVINO at both precisions, ONNX Runtime at its only one."""
    found = []
    for runtime, variants in models.items():
        for variant, file in variants.items():
            for precision in ("f32", "default") if runtime == "openvino" else ("default",):
                found.append(Model(runtime, variant, precision, file))
    return found


def verify(subject: Subject, reduced: Subject | None, models: list[Model], folder: Path) -> dict[str, Any]:
    """Return parity with the original and the full metrics of each model on the test split.

    Args:
        subject: the original.
        reduced: what passes on the torch model left of it.
        models: from `ways`.
        folder: an empty folder for inputs and outputs.

    Raises:
        CompressionError: if FP32 outputs differ from the original's, or a model needs refused code.
    """
    spec, splits = subject.export, subject.splits
    modules = {"fp32": spec.module} | ({} if reduced is None else {"reduced": reduced.export.module})
    references: dict[str, dict[str, NDArray[np.float32]]] = {variant: {} for variant in modules}
    inputs = {}
    for batch, length in spec.probes:
        name = f"probe{batch}x{length}"
        values = spec.example_inputs(batch, length)
        inputs[name] = _probe(spec, values, folder / name)
        for variant, module in modules.items():
            with torch.no_grad():
                references[variant][name] = frozen(module)(*values).numpy()
    job = {
        "models": [
            {"name": m.name, "file": str(m.file), "runtime": m.runtime, "precision": m.precision}
            for m in models
        ],
        "inputs": {name: {key: str(file) for key, file in files.items()} for name, files in inputs.items()},
        "rule": subject.task.decoding(),
        "scored": {key: str(file) for key, file in write_batch(splits, splits.test, folder, "test").items()},
        "threads": None,
        "output": str(folder),
    }
    run_child("fmdist.deployment.probe", job, folder)
    probed = storage.read_json(folder / "executed.json")
    if probed["refused_but_loaded"]:
        raise CompressionError(
            field="compress.verify",
            problem="running the artifact loaded modules that it must not need",
            value=probed["refused_but_loaded"],
        )
    return {
        "parity": _parity(spec, models, references, folder),
        "results": _results(subject, models, probed["executed"], folder),
        "validation": _validation(subject),
    }


def _validation(subject: Subject) -> dict[str, Any]:
    """Return the original's scores on the validation split; beside a stranger's, the trivial predictor's."""
    task, splits = subject.task, subject.splits
    validation = splits.validation
    original = score(task, torch_rows(task, validation), validation.targets)
    found = {way_of(subject.export.module).runtime: original, "size": len(validation)}
    if subject.foreign:
        rows = task.baseline(splits.train.plain(), validation)
        found["baseline"] = score(task, rows, validation.targets)
    return found


def _probe(spec: ExportSpec, values: Sequence[torch.Tensor], folder: Path) -> dict[str, Path]:
    """Write inputs and return their files by name."""
    folder.mkdir()
    files = {name: folder / f"{name}.npy" for name in spec.input_names}
    for file, value in zip(files.values(), values, strict=True):
        np.save(file, value.numpy())
    return files


def _parity(
    spec: ExportSpec,
    models: list[Model],
    references: Mapping[str, Mapping[str, NDArray[np.float32]]],
    folder: Path,
) -> list[dict[str, Any]]:
    rows = []
    for model in models:
        if model.variant not in references or (model.runtime == "openvino" and model.precision != "f32"):
            continue
        expected = references[model.variant].items()
        for (batch, length), (name, reference) in zip(spec.probes, expected, strict=True):
            outputs = np.load(folder / f"{model.name}.{name}.npy")
            if outputs.shape != reference.shape:
                raise CompressionError(
                    field=f"compress.verify.{model.runtime}",
                    problem=f"outputs of the wrong shape at {_size(batch, length)}",
                    value=outputs.shape,
                    allowed=str(reference.shape),
                )
            rows.append(
                {
                    "runtime": model.runtime,
                    "variant": model.variant,
                    "batch": batch,
                    "length": length or None,
                    **_difference(model.runtime, _size(batch, length), outputs, reference),
                }
            )
    return rows


def _size(batch: int, length: int) -> str:
    return f"batch size {batch}" + (f", length {length}" if length else "")


def _difference(
    runtime: str, size: str, outputs: NDArray[np.float32], reference: NDArray[np.float32]
) -> dict[str, float]:
    difference = float(np.abs(outputs.astype(np.float64) - reference).max())
    scale = float(np.abs(reference).max())
    # Written so that a difference of nan fails.
    if not difference <= TOLERANCE * scale:
        raise CompressionError(
            field=f"compress.verify.{runtime}",
            problem=f"FP32 outputs differ from torch's at {size}",
            value=difference,
            allowed=f"at most {TOLERANCE} x {scale:.4g}",
            fix="the export isn't faithful; try the model kind's other export route",
        )
    return {
        "max_abs_difference": difference,
        "max_abs_reference": scale,
        "relative": difference / scale if scale else 0.0,
        "tolerance": TOLERANCE,
    }


def _results(
    subject: Subject, models: list[Model], executed: Mapping[str, dict[str, int]], folder: Path
) -> list[dict[str, Any]]:
    """Return one row per way to run the model, the original's first, with metrics on the test split."""
    task, test = subject.task, subject.splits.test
    original = score(task, torch_rows(task, test), test.targets)
    module = subject.export.module
    ran = module.session.executed() if isinstance(module, Hosted) else {}
    rows = [_row(*way_of(module), ran, original)]
    for model in models:
        outputs = np.load(folder / f"{model.name}.scored.npy")
        values = score(task, outputs, test.targets)
        rows.append(_row(model.runtime, model.variant, model.precision, executed[model.name], values))
    primary = task.primary[0]
    for row in rows:
        row["value"] = row["metrics"][primary]
        row["drop"] = drop(task, original[primary], row["value"])
    return rows


def _row(
    runtime: str, variant: str, precision: str, executed: dict[str, int], metrics: dict[str, float]
) -> dict[str, Any]:
    return {
        "runtime": runtime,
        "variant": variant,
        "precision": precision,
        "executed": executed,
        "metrics": metrics,
    }
