"""Models that fmdist didn't train, as subjects of compression.

Shapes: B batch, N samples, K outputs.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fmdist import storage
from fmdist.compression.config import CompressConfig
from fmdist.compression.graphs import read_graph
from fmdist.compression.original import Hosted, Original
from fmdist.compression.passes.base import ExportedPass
from fmdist.compression.ports import match
from fmdist.compression.subject import batch_of, score, torch_rows
from fmdist.compression.vetting import damaged
from fmdist.contracts import ExportSpec, Task
from fmdist.data.splits import DataSplits
from fmdist.errors import CapabilityError, CheckpointError
from fmdist.models.base import ModelConfig
from fmdist.tasks.base import OneModelTask
from fmdist.training.checkpoint import weights_digest

SHOWN = 5
"""Names of weights that one message holds."""

_WHOLE = 4
"""Samples that are run at once and one by one."""

log = logging.getLogger(__name__)


def check_passes(config: CompressConfig, what: str) -> None:
    """Raise unless all passes work without a torch module that can be changed and trained.

    Raises:
        CapabilityError: naming the pass and what it needs.
    """
    for settings in config.passes:
        if not isinstance(settings, ExportedPass):
            raise CapabilityError(
                field="compress.passes",
                problem=f"'{settings.kind()}' changes and trains a torch module, and {what} is none",
                value=settings.kind(),
                allowed="quantize, compress_weights",
                fix="give the weights as .safetensors, with a recipe whose model section builds the module",
            )


def check_runtimes(config: CompressConfig, graph: Path) -> CompressConfig:
    """Return the section with the runtimes that a graph can be had for.

    Raises:
        CapabilityError: if ONNX Runtime is asked for, and the graph is OpenVINO's.
    """
    if graph.suffix.lower() != ".xml":
        return config
    if "onnxruntime" in (config.runtimes or ()):
        raise CapabilityError(
            field="compress.runtimes",
            problem="nothing turns an OpenVINO IR into ONNX",
            value="onnxruntime",
            allowed="openvino",
            fix="give the .onnx file that the IR was made from",
        )
    return config.model_copy(update={"runtimes": ("openvino",)})


def host(file: Path, task: Task, folder: Path) -> ExportSpec:
    """Give a task the graph of an ``.onnx`` or ``.xml`` file as its model.

    Args:
        file: the graph.
        task: takes it.
        folder: an empty folder for the graph under the task's names; must outlive the subject.

    Raises:
        CheckpointError: if the file is damaged, or reaches for others outside of its folder.
        CapabilityError: if its inputs and outputs aren't the task's, or it needs code from elsewhere.
    """
    graph = read_graph(file)
    matched = match(file, graph.inputs, graph.outputs, task.inputs, len(task.spec.target.names))
    if others := [port.name for port in graph.outputs if port is not matched.output]:
        log.warning("%s: only its output '%s' is used, not %s", file, matched.output.name, ", ".join(others))
    names = tuple(item.name for item in task.inputs)
    original = Original(graph.runtime, graph.save(matched, names, folder), matched.batch)
    try:
        hosted = Hosted(original, names)
    except CheckpointError as error:
        raise damaged(file, error.problems[0].problem) from error
    return adopt(task, hosted)


def adopt(task: Task, module: nn.Module) -> ExportSpec:
    """Give a task a module as its model; return how it is exported."""
    assert isinstance(task, OneModelTask)
    task.take(module.eval())
    return ModelConfig().export(module, task.inputs)


def read_program(file: Path) -> nn.Module:
    """Return the module of a ``.pt2`` file, which its user trusts: reading it can run code.

    Raises:
        CheckpointError: if it can't be read.
    """
    said = logging.getLogger("torch.export")
    before, said.disabled = said.disabled, True  # it logs the traceback of what it raises
    try:
        module: nn.Module = torch.export.load(file).module()
    except Exception as error:  # a zip of JSON and pickles: what a damaged one raises has no common base
        raise damaged(file, error) from error
    finally:
        said.disabled = before
    # Both only raise: a program is as it was exported. What is compressed is set to evaluation all the time.
    for name in ("train", "eval"):
        module.__dict__.pop(name, None)
    return module


def load_weights(file: Path, module: nn.Module) -> None:
    """Fill a module from a ``.safetensors`` file.

    Raises:
        CheckpointError: naming the first weights whose names or shapes differ.
    """
    try:
        found = load_file(str(file))
    except (SafetensorError, OSError, ValueError) as error:
        raise damaged(file, error) from None
    wanted = module.state_dict()
    mistakes = [f"{name} is missing" for name in wanted if name not in found]
    mistakes += [f"{name} is unknown" for name in found if name not in wanted]
    mistakes += [
        f"{name} is {tuple(found[name].shape)}, not {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in found and found[name].shape != value.shape
    ]
    if mistakes:
        more = f" and {len(mistakes) - SHOWN} more" if len(mistakes) > SHOWN else ""
        raise CheckpointError(
            field=str(file),
            problem=f"the weights aren't those of the recipe's model: {'; '.join(mistakes[:SHOWN])}{more}",
            fix="give the recipe the model section that the weights were trained with",
        )
    module.load_state_dict(found)


def check_sane(task: Task, export: ExportSpec, splits: DataSplits) -> None:
    """Run the original on a few samples, and score it beside the trivial predictor.

    Raises:
        CapabilityError: if its answers have the wrong shape, or depend on what else is in the batch.
        CompressionError: if its answers or scores aren't finite.
    """
    batch = batch_of(splits.validation, np.arange(min(_WHOLE, len(splits.validation))))
    values = [torch.from_numpy(batch[item.name]) for item in task.inputs]
    answers, alone = _answers(export, values), []
    for row in range(len(answers)):
        alone.append(_answers(export, [value[row : row + 1] for value in values]))
    wanted = (len(values[0]), len(splits.spec.target.names))
    if answers.shape != wanted:
        raise CapabilityError(
            field="model",
            problem="its answers aren't what the task scores",
            value=answers.shape,
            allowed=str(wanted),
            fix="give a model whose last layer has one output for each of the data's targets",
        )
    scale = float(np.abs(answers).max())
    if not float(np.abs(np.concatenate(alone) - answers).max()) <= 1e-3 * scale:
        raise CapabilityError(
            field="model",
            problem="its answer to a sample depends on the others of the batch, or on chance",
            fix="export it in evaluation mode: call model.eval() before",
        )
    validation, (name, mode) = splits.validation, task.primary
    found = score(task, torch_rows(task, validation), validation.targets)[name]
    baseline = score(task, task.baseline(splits.train.plain(), validation), validation.targets)[name]
    log.info("original: %s %.4f on validation; the trivial predictor has %.4f", name, found, baseline)
    if (found <= baseline) if mode == "max" else (found >= baseline):
        log.warning(
            "the model is no better than the trivial predictor (%s %.4f against %.4f): was it trained on "
            "inputs that were preprocessed as the recipe's data section does it, and are its classes in this "
            "order: %s?",
            name,
            found,
            baseline,
            ", ".join(splits.spec.target.names[:10]),
        )


def _answers(export: ExportSpec, values: Sequence[torch.Tensor]) -> np.ndarray[Any, np.dtype[np.float32]]:
    try:
        with torch.inference_mode():
            answers = export.module(*values)
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
        raise CapabilityError(
            field="model",
            problem=f"it doesn't run on the data's inputs ({' '.join(str(error).split())[:200]})",
            value=", ".join(f"{value.dtype} {tuple(value.shape)}".removeprefix("torch.") for value in values),
            fix="export it with a free (dynamic) batch axis, for inputs of this type and shape",
        ) from error
    if not isinstance(answers, torch.Tensor):
        raise CapabilityError(
            field="model",
            problem="its forward must return one tensor",
            value=type(answers).__name__,
            fix="wrap it in a module whose forward returns the logits alone",
        )
    return answers.float().numpy()


def digest_of(file: Path) -> str:
    """Return the SHA-256 of a model's file, and of the weights beside an IR."""
    parts = [storage.sha256(file)]
    if file.suffix.lower() == ".xml":
        parts.append(storage.sha256(file.with_suffix(".bin")))
    return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()


def digest_of_module(module: nn.Module) -> str:
    """Return a SHA-256 over a module's weights, settings and, where it can be found, its code."""
    state = hashlib.sha256(f"{weights_digest(module)}{module}".encode())
    if isinstance(module, torch.fx.GraphModule):
        state.update(module.code.encode())
    for kind in sorted({type(part) for part in module.modules()}, key=lambda kind: kind.__qualname__):
        if not kind.__module__.startswith("torch."):
            try:
                state.update(inspect.getsource(kind).encode())
            except (OSError, TypeError):  # typed into an interpreter
                log.debug("%s has no source", kind)
    return state.hexdigest()
