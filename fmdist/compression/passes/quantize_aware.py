"""Quantization-aware training: the model is trained on with INT8's rounding, so that its weights bear it.

NNCF puts fake quantizers into the torch model, whose ranges are set by calibration samples and trained like
weights; the loop that trains everything goes on with it and keeps the best epoch by the quantized score. For
networks that lose too much by `quantize`, such as depthwise-separable ones.

Sources: Jacob et al. 2018 (arXiv:1712.05877); learned ranges, Jain et al. 2020 (arXiv:1903.08066); NNCF,
github.com/openvinotoolkit/nncf.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from torch import nn

from fmdist.compression.finetune_config import FinetuneConfig
from fmdist.compression.passes import coverage, nncf_torch
from fmdist.compression.passes import layers as found_layers
from fmdist.compression.passes.base import Outcome, TrainedPass, TrainingBench, Workbench
from fmdist.compression.passes.trial import Trial, attempt, budget_missed, relative_rms, within_budget
from fmdist.contracts import ExportSpec, Task
from fmdist.deployment.runtime import open_model
from fmdist.errors import CapabilityError, CheckpointError, CompressionError
from fmdist.training.wrapped import Wrapped

REQUIRES = ("compress",)

FAITHFUL = 0.5
"""Relative RMS difference of an export from the torch model with quantizers, above which it is another model.

Rounding explains less: most differ by less than 0.02, and by 0.1 in ONNX Runtime where channels have very
different ranges. What a difference costs the validation split tells.
"""

_FIELD = "compress.passes.quantize_aware"
_WRITE: dict[str, Callable[[ExportSpec, Path], None]] = {
    "openvino": nncf_torch.write_openvino,
    "onnxruntime": nncf_torch.write_onnx,
}
_READ = {"openvino": coverage.openvino_layers, "onnxruntime": coverage.onnx_layers}
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)
_QUANTIZED = (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding, nn.EmbeddingBag)

log = logging.getLogger(__name__)


class Config(TrainedPass):
    """Training with INT8's rounding of weights and activations."""

    precision: Literal["int8"] = "int8"
    """Of weights and activations."""
    preset: Literal["performance", "mixed"] = "mixed"
    """Activations: `performance` symmetric, `mixed` asymmetric where they take both signs."""
    ignore: tuple[str, ...] = ()
    """Names of layers to leave in float, or patterns such as `layer4.*`."""
    finetune: FinetuneConfig = FinetuneConfig()
    """The training with quantizers, in float32, without warm-up; lr null is a tenth of the recipe's."""

    def check(self, task: Task, module: nn.Module) -> None:
        """See `TrainedPass.check`."""
        layers = found_layers.with_weights(module)
        _served_role(task)
        _check_layers(layers, found_layers.ignored(layers, self.ignore, {}, self.kind()))

    def train(self, bench: Workbench, training: TrainingBench) -> Outcome:
        """See `TrainedPass.train`."""
        layers = found_layers.with_weights(training.served)
        ignored = found_layers.ignored(layers, self.ignore, {}, self.kind())
        role = _served_role(training.task)
        _check_layers(layers, ignored)
        # An original that isn't finite raises here, where it can't be taken for a fault of the pass.
        bench.score(bench.reference, np.arange(len(bench.reference)))
        hooked = self._hooked(bench, training, list(ignored))
        training.task = WithQuantizers(training.task, role, hooked)
        before = training.value()
        training.finetune(self.finetune, "finetune")
        hooked.eval()
        nncf_torch.clip_weights(hooked, training.example)
        log.info("with quantizers: %.4g on validation before training, %.4g after", before, training.value())
        spec = replace(training.export, module=hooked)
        models, covered = {}, {}
        candidates: list[dict[str, Any]] = []
        skipped = dict(bench.float_only)
        for runtime in [name for name in bench.models if name not in bench.float_only]:
            trial = self._exported(bench, spec, runtime)
            if isinstance(trial, str):
                skipped[runtime] = trial
                continue
            if not within_budget(bench, trial):
                raise budget_missed(bench, [trial])
            covered[runtime] = _covered(runtime, trial, ignored)
            models[runtime] = trial.file
            candidates.append(trial.row(trial, bench.mode))
            log.info("%s: %s, drop %.4g on validation", runtime, trial.setting, trial.drop)
        for runtime, reason in skipped.items():
            log.warning("%s: stays in float: %s", runtime, reason)
        return Outcome(self.precision, models, candidates, covered, skipped)

    def _hooked(self, bench: Workbench, training: TrainingBench, ignored: list[str]) -> nn.Module:
        """Return what is served with quantizers.

        Raises:
            CapabilityError: if NNCF can't give it any, or training would not meet them all.
        """
        names = training.export.input_names
        size = len(next(iter(bench.calibration.values())))
        samples = [
            tuple(torch.from_numpy(np.array(bench.calibration[name][row : row + 1])) for name in names)
            for row in range(size)
        ]
        try:
            hooked = nncf_torch.with_quantizers(training.served, samples, self.preset, ignored)
            unused = nncf_torch.unused_in_training(hooked, training.example)
        except Exception as error:
            # NNCF's own exceptions derive from Exception and share no base class.
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            _refuse(f"NNCF can't trace the model ({type(error).__name__}: {reason})")
        if unused:
            _refuse(f"the model computes otherwise in training: no quantizer acts in {unused}")
        _check_acting(hooked, list(found_layers.with_weights(training.served)), ignored)
        if "openvino" in bench.models and "openvino" not in bench.float_only:
            try:
                nncf_torch.write_openvino(replace(training.export, module=hooked), bench.folder / "trial.xml")
            except CompressionError as error:
                # Known before hours of training instead of after them.
                _refuse(f"with them openvino {error.problems[0].problem}")
        return hooked

    def _exported(self, bench: Workbench, spec: ExportSpec, runtime: str) -> Trial | str:
        """Return the scored model of a runtime, or why there is none.

        Raises:
            CompressionError: if there is none and no other runtime has one.
        """

        def write(file: Path) -> None:
            _WRITE[runtime](spec, file)
            _check_faithful(spec, file, runtime)

        setting = f"quantization-aware, {self.preset}, {self.finetune.epochs} epochs"
        try:
            return attempt(bench, runtime, setting, write)
        except Exception as error:
            # ONNX Runtime's own exceptions derive from Exception and share no base class.
            if isinstance(error, CompressionError | CheckpointError):
                reason = error.problems[0].problem
            elif isinstance(error, RuntimeError) or type(error).__module__.startswith("onnxruntime"):
                reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            else:
                raise
            if runtime == "onnxruntime" and "openvino" in bench.models:
                return f"the model with quantizers can't be exported: {reason}"
            raise CompressionError(
                field=_FIELD,
                problem=f"{runtime}: the model with quantizers can't be exported: {reason}",
                fix=f"take quantize instead, or leave {runtime} out of compress.runtimes",
            ) from error


class WithQuantizers(Wrapped):
    """A task one of whose roles has quantizers."""

    def __init__(self, task: Task, role: str, module: nn.Module) -> None:
        super().__init__(task)
        self._own = {**task.roles(), role: module}

    def roles(self) -> dict[str, nn.Module]:
        """Return the task's roles, the one with quantizers among them."""
        return self._own


def _served_role(task: Task) -> str:
    """Return the trained role that is served.

    Raises:
        CapabilityError: if that is another module.
    """
    roles = task.roles()
    served = task.served(roles)
    found = [phase.role for phase in task.phases() if roles[phase.role] is served]
    if not found:
        _refuse(
            "what is trained is not what is served: training scores pairs and what is served ranks all "
            "items, so the quantizers of the one would not act in the other"
        )
    return found[0]


def _check_layers(layers: Mapping[str, nn.Module], ignored: Mapping[str, str]) -> None:
    """Raise `CapabilityError` if there are layers that NNCF can't quantize, or none that it can."""
    recurrent = [name or "the model" for name, layer in layers.items() if isinstance(layer, _RECURRENT)]
    if recurrent:
        _refuse(f"NNCF has no quantizers for the recurrent layers {', '.join(recurrent)}")
    if not any(isinstance(layer, _QUANTIZED) for name, layer in layers.items() if name not in ignored):
        _refuse("there is no layer that it may quantize")


def _check_acting(hooked: nn.Module, layers: Sequence[str], ignored: Sequence[str]) -> None:
    """Raise `CapabilityError` unless some layer has a quantizer, and none that must not."""
    acting = {name for name, _ in nncf_torch.quantizers(hooked) if name}
    # A layer that isn't reached through calls of all modules around it has only the end of its name.
    met = {layer for layer in layers if any(layer == name or layer.endswith(f".{name}") for name in acting)}
    if not met:
        _refuse("NNCF gives no layer of the model a quantizer")
    if unkept := sorted(met & set(ignored)):
        _refuse(f"NNCF knows its layers by other names, so {', '.join(unkept)} can't be ignored")


def _refuse(reason: str) -> NoReturn:
    raise CapabilityError(
        field=_FIELD,
        problem=f"this model can't be trained with quantizers: {reason}",
        fix="take quantize, which works on the exported model",
    )


def _check_faithful(spec: ExportSpec, file: Path, runtime: str) -> None:
    """Raise `CompressionError` unless the export answers as torch does, at every probe's sizes."""
    session = open_model(file, runtime, "f32")
    for probe in spec.probes:
        inputs = spec.example_inputs(*probe)
        with torch.no_grad():
            expected = spec.module(*inputs).numpy()
        found = session.run(
            {name: value.numpy() for name, value in zip(spec.input_names, inputs, strict=True)}
        )
        if found.shape != expected.shape:
            problem = f"it answers in another shape, {found.shape} for {expected.shape}"
            raise CompressionError(field=_FIELD, problem=problem)
        difference = relative_rms(found, expected)
        if not difference <= FAITHFUL:
            problem = f"its outputs are {difference:.3g} from torch's, where rounding explains {FAITHFUL}"
            raise CompressionError(field=_FIELD, problem=problem)


def _covered(runtime: str, trial: Trial, ignored: Mapping[str, str]) -> dict[str, Any]:
    """Return what was quantized.

    Raises:
        CompressionError: if nothing was.
    """
    layers = _READ[runtime](trial.file)
    reasons = {}
    for layer in layers:
        name = _torch_name(layer.name)
        if reason := ignored.get(name) or ignored.get(name.removeprefix("net.")):
            reasons[layer.name] = reason
    record = coverage.summarize(layers, reasons, "NNCF doesn't cover this layer")
    if not record["changed_layers"]:
        raise CompressionError(
            field=_FIELD,
            problem=f"{runtime}: no layer was quantized",
            value=[layer.name for layer in layers],
            fix="leave the pass out",
        )
    for left in record["left"]:
        log.warning("%s: %s (%s) stays in float: %s", runtime, left["name"], left["type"], left["reason"])
    return record


def _torch_name(node: str) -> str:
    """Return the layer of an exported node: ``__module.a.0/...`` and ``/a/a.0/Conv`` are of ``a.0``."""
    if node.startswith("__module."):
        return node.removeprefix("__module.").split("/")[0]
    parts: list[str] = []
    for part in node.split("/")[1:-1]:
        # Of a chain's links ONNX repeats the chain's own name.
        if parts and part.startswith(f"{parts[-1]}."):
            parts.pop()
        parts.append(part)
    return ".".join(parts)
