"""Post-training INT8 quantization: NNCF for OpenVINO, ONNX Runtime's static quantization for ONNX.

Several settings are tried on calibration samples of the training split, each is scored on the validation
split in the runtime that will run it, and the best of the fastest kind that keeps to the budget is kept. If
none for OpenVINO does, NNCF's accuracy control gives layers back to float, the worst first.

Source: NNCF, github.com/openvinotoolkit/nncf.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import product, starmap
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fmdist.compression.openvino_files import save_openvino
from fmdist.compression.passes import coverage, onnx_static
from fmdist.compression.passes.base import ExportedPass, Outcome, Workbench
from fmdist.compression.passes.nncf_calls import calibration_samples, quiet_nncf, sample_count
from fmdist.compression.passes.trial import Trial, attempt, best_of, budget_missed, within_budget
from fmdist.deployment.runtime import load_openvino
from fmdist.errors import CheckpointError, CompressionError, FmdistError
from fmdist.tasks import decoding

REQUIRES = ("compress",)

FAILURES = (RuntimeError, CompressionError, CheckpointError)
"""What a setting fails with that doesn't suit a model."""

log = logging.getLogger(__name__)


class Config(ExportedPass):
    """Settings that are tried; the best on validation of the first preset within the budget is kept."""

    precision: Literal["int8"] = "int8"
    """Of weights and activations."""
    presets: tuple[Literal["performance", "mixed"], ...] = Field(
        default=("performance", "mixed"), min_length=1
    )
    """OpenVINO activations: `performance` symmetric, `mixed` asymmetric where they take both signs, which is
    more accurate and slower. One after the other, until the best of what was tried keeps to the budget."""
    bias_correction: tuple[Literal["fast", "full", "none"], ...] = Field(
        default=("fast", "full", "none"), min_length=1
    )
    """OpenVINO bias corrections to try; the fast one can cost small networks more than a point."""
    ranges: tuple[Literal["mean", "minmax"], ...] = Field(default=("mean", "minmax"), min_length=1)
    """OpenVINO activation ranges to try: the `mean` over samples clips rare large values, which suits images;
    `minmax` covers them all, and tables need that."""
    accuracy_control: bool = True
    """If the budget is missed, let NNCF return layers to float until it is met (OpenVINO only)."""

    def apply(self, bench: Workbench) -> Outcome:
        """See `ExportedPass.apply`."""
        quantizers = {"openvino": self._openvino, "onnxruntime": self._onnx}
        models, covered = {}, {}
        candidates: list[dict[str, Any]] = []
        # An original that isn't finite raises here, where it can't be taken for a setting that fails.
        bench.score(bench.reference, np.arange(len(bench.reference)))
        for runtime in bench.models:
            if runtime in bench.float_only:
                log.warning("%s: stays in float: %s", runtime, bench.float_only[runtime])
                continue
            trials = quantizers[runtime](bench)
            best = best_of(trials)
            candidates += [trial.row(best, bench.mode) for trial in trials]
            if not within_budget(bench, best):
                raise budget_missed(bench, trials)
            covered[runtime] = _covered(runtime, best)
            models[runtime] = best.file
            log.info("%s: %s, drop %.4g on validation", runtime, best.setting, best.drop)
        return Outcome(self.precision, models, candidates, covered, bench.float_only)

    def _openvino(self, bench: Workbench) -> list[Trial]:
        trials: list[Trial] = []
        failures: dict[str, str] = {}
        settings: dict[str, _Setting] = {}
        for preset in self.presets:
            if trials and within_budget(bench, best_of(trials)):
                break
            for setting in starmap(_Setting, product((preset,), self.ranges, self.bias_correction)):

                def write(file: Path, setting: _Setting = setting) -> None:
                    _quantize_openvino(bench, file, setting)

                # For one, full bias correction cuts some LSTMs from their weights.
                trials += _attempted(bench, "openvino", str(setting), write, failures)
                settings[str(setting)] = setting
        _check_any(trials, "openvino", failures)
        best = best_of(trials)
        if self.accuracy_control and not within_budget(bench, best):
            start = settings[best.setting]
            full = start._replace(bias_correction="full")
            start = start if str(full) in failures else full
            try:
                trials.append(_controlled(bench, start))
            except FAILURES as error:  # NNCF can't compile some LSTMs half way
                log.warning("openvino: accuracy control fails and is left out: %s", _reason(error))
        return trials

    def _onnx(self, bench: Workbench) -> list[Trial]:
        source = bench.folder / "prepared.onnx"
        onnx_static.prepare(bench.models["onnxruntime"], source)
        trials: list[Trial] = []
        failures: dict[str, str] = {}
        for setting in (*onnx_static.SETTINGS, onnx_static.PRODUCTS):
            # All kernels are there for the first; others that lose a hair less can run much slower.
            if trials and within_budget(bench, best_of(trials)):
                break

            def write(file: Path, setting: str = setting) -> None:
                onnx_static.quantize_onnx(source, file, bench.calibration, setting)

            trials += _attempted(bench, "onnxruntime", setting, write, failures)
        _check_any(trials, "onnxruntime", failures)
        return trials


class _Setting(NamedTuple):
    """One way to quantize for OpenVINO."""

    preset: str
    ranges: str
    bias_correction: str

    def __str__(self) -> str:
        return f"{self.preset}, {self.ranges} ranges, {self.bias_correction} bias correction"


def _controlled(bench: Workbench, start: _Setting) -> Trial:
    def write(file: Path) -> None:
        _quantize_with_control(bench, file, start)

    trial = attempt(bench, "openvino", f"accuracy control, {start}", write)
    reason = "returned to float by accuracy control"
    layers = coverage.openvino_layers(trial.file)
    trial.reasons = {layer.name: reason for layer in layers if not layer.quantized}
    return trial


def _attempted(
    bench: Workbench, runtime: str, setting: str, write: Callable[[Path], None], failures: dict[str, str]
) -> list[Trial]:
    """Return a setting's trial; none, with a warning and a note in ``failures``, if it fails.

    Outputs or a metric that aren't finite are a failure too: no score could be worse. So is a file that the
    runtime can't read: OpenVINO's symmetric INT8 of some recurrent models is one.
    """
    try:
        return [attempt(bench, runtime, setting, write)]
    except FAILURES as error:
        failures[setting] = _reason(error)
        log.warning("%s: %s fails and is left out: %s", runtime, setting, failures[setting])
        return []


def _check_any(trials: Sequence[Trial], runtime: str, failures: Mapping[str, str]) -> None:
    """Raise `CompressionError` if every setting failed."""
    if not trials:
        raise CompressionError(
            field="compress.passes.quantize",
            problem=f"{runtime}: every setting fails",
            value=dict(failures),
            fix=f"leave {runtime} out of compress.runtimes, or leave the pass out",
        )


def _reason(error: RuntimeError | FmdistError) -> str:
    if isinstance(error, FmdistError):
        return error.problems[0].problem
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _covered(runtime: str, best: Trial) -> dict[str, Any]:
    """Return what was quantized.

    Raises:
        CompressionError: if nothing was.
    """
    layers = (coverage.openvino_layers if runtime == "openvino" else coverage.onnx_layers)(best.file)
    if not any(layer.quantized for layer in layers):
        problem = f"{runtime}: no layer was quantized"
        fix = "the model has no layer that INT8 quantization covers; leave the pass out"
        if best.reasons:
            problem += ", since accuracy control had to return every one to float to keep to max_drop"
            fix = "allow a larger compress.max_drop, or leave the pass out"
        raise CompressionError(
            field="compress.passes.quantize",
            problem=problem,
            value=[layer.name for layer in layers],
            fix=fix,
        )
    method = "NNCF" if runtime == "openvino" else "ONNX Runtime's static quantization"
    record = coverage.summarize(layers, best.reasons, f"{method} doesn't cover this layer")
    for left in record["left"]:
        log.warning("%s: %s (%s) stays in float: %s", runtime, left["name"], left["type"], left["reason"])
    return record


def _quantize_openvino(bench: Workbench, file: Path, setting: _Setting) -> None:
    openvino = load_openvino()
    import nncf

    model = openvino.Core().read_model(str(bench.models["openvino"]))
    with quiet_nncf():
        quantized = nncf.quantize(
            model,
            calibration_samples(bench),
            subset_size=sample_count(bench),
            preset=nncf.QuantizationPreset(setting.preset),
            fast_bias_correction=setting.bias_correction != "full",
            advanced_parameters=_advanced(setting),
        )
    save_openvino(quantized, file, bench.models["openvino"])


def _quantize_with_control(bench: Workbench, file: Path, setting: _Setting) -> None:
    openvino = load_openvino()
    import nncf

    sign = 1.0 if bench.mode == "max" else -1.0
    chunks = np.array_split(np.arange(len(bench.reference)), max(1, len(bench.reference) // 32))

    def samples(rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        return {name: np.array(value[rows]) for name, value in bench.validation.items()}

    def validate(model: Any, items: Iterable[NDArray[np.int64]]) -> tuple[float, None]:
        """Return the metric, more is better, of some chunks of the validation split."""

        def run(inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
            return np.array(model(dict(inputs))[0], np.float32)

        seen = list(items)
        found = [decoding.rows(bench.rule, run, samples(rows)) for rows in seen]
        return sign * bench.score(np.concatenate(found), np.concatenate(seen)), None

    def inputs(rows: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        return decoding.feed(bench.rule, samples(rows))

    model = openvino.Core().read_model(str(bench.models["openvino"]))
    with quiet_nncf():
        quantized = nncf.quantize_with_accuracy_control(
            model,
            calibration_samples(bench),
            nncf.Dataset(chunks, inputs),
            validate,
            max_drop=bench.max_drop,
            drop_type=nncf.DropType.ABSOLUTE,
            preset=nncf.QuantizationPreset(setting.preset),
            subset_size=sample_count(bench),
            fast_bias_correction=setting.bias_correction != "full",
            advanced_quantization_parameters=_advanced(setting),
        )
    save_openvino(quantized, file, bench.models["openvino"])


def _advanced(setting: _Setting) -> Any:
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedSmoothQuantParameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    # SmoothQuant costs transformers a lot of accuracy and gives convolutions nothing; -1 is off.
    return nncf.AdvancedQuantizationParameters(
        disable_bias_correction=setting.bias_correction == "none",
        activations_range_estimator_params=(
            RangeEstimatorParametersSet.MINMAX if setting.ranges == "minmax" else None
        ),
        smooth_quant_alphas=AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
    )
