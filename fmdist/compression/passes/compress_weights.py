"""Weight-only compression by NNCF: weights in 8 or 4 bits, activations in float.

For models whose size counts, and for those that lose too much by rounding activations. Only what the written
file really holds counts: asked for 4 bits, NNCF gives convolutions, widths that no group divides and, without
``all_layers``, embeddings and the last layer 8 bits.

Source: NNCF, github.com/openvinotoolkit/nncf; AWQ, Lin et al. 2023, arxiv.org/abs/2306.00978; GPTQ,
Frantar et al. 2022, arxiv.org/abs/2210.17323; NF4, Dettmers et al. 2023, arxiv.org/abs/2305.14314.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import Field, field_validator, model_validator

from fmdist.compression.openvino_files import save_openvino
from fmdist.compression.passes import coverage, onnx_weights
from fmdist.compression.passes.base import ExportedPass, Outcome, Workbench
from fmdist.compression.passes.coverage import Layer
from fmdist.compression.passes.nncf_calls import calibration_samples, quiet_nncf, sample_count
from fmdist.compression.passes.trial import Trial, attempt, budget_missed, within_budget
from fmdist.deployment.runtime import load_openvino
from fmdist.errors import CapabilityError, CheckpointError, CompressionError, did_you_mean

REQUIRES = ("compress",)

_FIELD = "compress.passes.compress_weights"
_READ = {"openvino": coverage.openvino_layers, "onnxruntime": coverage.onnx_layers}
_IGNORED = "ignored by the recipe"
_ONLY_FOUR = ("group_size", "ratio", "sensitivity", "awq", "scale_estimation", "gptq", "all_layers")

log = logging.getLogger(__name__)


class Config(ExportedPass):
    """The precision of the weights, and how it is reached; scored on validation."""

    precision: Literal["int8_asym", "int8_sym", "int4_sym", "int4_asym", "nf4"] = "int8_asym"
    """Of the weights; `asym` has a zero point beside the scale, `nf4` has steps as a normal distribution
    needs them (OpenVINO only)."""
    group_size: int = Field(default=128, ge=-1)
    """4 bits only: how many weights of one output share a scale; -1: all (OpenVINO only). ONNX Runtime takes
    powers of two from 16 on."""
    ratio: float = Field(default=1.0, gt=0, le=1)
    """4 bits only: the share of the weights that get them, the least sensitive ones; the rest gets 8 bits."""
    sensitivity: Literal[
        "weight_quantization_error",
        "hessian_input_activation",
        "mean_activation_variance",
        "max_activation_variance",
        "mean_activation_magnitude",
    ] = "weight_quantization_error"
    """What tells the layers of `ratio` apart; all but the first look at calibration samples."""
    awq: bool = False
    """4 bits only: scale weights by the size of their activations first."""
    scale_estimation: bool = False
    """4 bits only: choose scales that keep the layers' outputs on calibration samples (OpenVINO only)."""
    gptq: bool = False
    """4 bits only: let later weights make up for the rounding of earlier ones (OpenVINO only)."""
    all_layers: bool = False
    """4 bits only: give them to embeddings (OpenVINO only) and to the last layer too."""
    ignore: tuple[str, ...] = ()
    """Names of layers of an exported model to leave in float, or patterns such as `*embeddings*`."""

    @property
    def asked(self) -> str:
        """The weights' precision as `fmdist.compression.passes.coverage` names it."""
        return self.precision.split("_", maxsplit=1)[0]

    @field_validator("group_size")
    @classmethod
    def _some(cls, size: int) -> int:
        if size == 0:
            message = "a group has at least one weight; -1 makes all weights of an output one group"
            raise ValueError(message)
        return size

    @model_validator(mode="after")
    def _fits_precision(self) -> Self:
        fields = type(self).model_fields
        given = [name for name in _ONLY_FOUR if getattr(self, name) != fields[name].default]
        if self.asked == "int8" and given:
            message = f"{self.precision} has no {', '.join(given)}: only 4 bits (int4_sym, int4_asym, nf4) do"
            raise ValueError(message)
        return self

    def check(self, models: Mapping[str, Path]) -> None:
        """See `ExportedPass.check`."""
        layers = {runtime: _READ[runtime](file) for runtime, file in models.items()}
        ignored = _ignored(layers, self.ignore)
        if self.asked != "int8":
            for runtime, found in layers.items():
                _check_widths(self, runtime, found, ignored)

    def apply(self, bench: Workbench) -> Outcome:
        """See `ExportedPass.apply`.

        Raises:
            CapabilityError: if a name of ``ignore`` fits no layer, or no runtime runs the precision.
        """
        # An original that isn't finite raises here, where it can't be taken for a fault of the pass.
        bench.score(bench.reference, np.arange(len(bench.reference)))
        # bench.float_only is about rounding activations, which stay in float here.
        self.check(bench.models)
        layers = {runtime: _READ[runtime](file) for runtime, file in bench.models.items()}
        ignored = _ignored(layers, self.ignore)
        models, covered = {}, {}
        candidates: list[dict[str, Any]] = []
        skipped: dict[str, str] = {}
        for runtime, found in layers.items():
            names = [layer.name for layer in found if layer.name in ignored]
            outcome = _attempted(self, bench, runtime, names)
            if isinstance(outcome, str):
                _check_left(self, runtime, outcome, bench)
                skipped[runtime] = outcome
                log.warning("%s: stays in float: %s", runtime, outcome)
                continue
            written = coverage.after(found, _READ[runtime](outcome.file))
            covered[runtime] = _covered(self, runtime, written, ignored)
            if not within_budget(bench, outcome):
                raise budget_missed(bench, [outcome])
            models[runtime] = outcome.file
            candidates.append(outcome.row(outcome, bench.mode))
            log.info("%s: %s, drop %.4g on validation", runtime, outcome.setting, outcome.drop)
        return Outcome(f"{self.asked}_weights", models, candidates, covered, skipped)


def _attempted(config: Config, bench: Workbench, runtime: str, names: Sequence[str]) -> Trial | str:
    """Return the scored model, or why the runtime has none."""
    heard: list[str] = []
    write = partial(_compress, config, bench, runtime, names, heard)
    try:
        trial = attempt(bench, runtime, _setting(config), write)
    except Exception as error:
        # NNCF's and ONNX Runtime's own exceptions derive from Exception and share no base class.
        theirs = type(error).__module__.startswith(("nncf", "onnxruntime"))
        if not theirs and not isinstance(error, RuntimeError | CompressionError | CheckpointError):
            raise
        return _reason(error).replace(f"{bench.folder}/", "")
    if config.awq and any("No matching patterns" in line for line in heard):
        log.warning("%s: AWQ finds no pattern in this model that it can scale, and changes nothing", runtime)
        trial.setting += " (finds no pattern)"
    return trial


def _compress(
    config: Config, bench: Workbench, runtime: str, names: Sequence[str], heard: list[str], file: Path
) -> None:
    """Write the compressed model to ``file``, and what NNCF logs to ``heard``."""
    openvino = load_openvino()
    import nncf
    import onnx

    source = bench.models[runtime]
    with quiet_nncf() as lines:
        options = {"mode": nncf.CompressWeightsMode(config.precision), **_options(config, bench)}
        if names:
            options["ignored_scope"] = nncf.IgnoredScope(names=list(dict.fromkeys(names)), validate=False)
        model = openvino.Core().read_model(str(source)) if runtime == "openvino" else onnx.load(str(source))
        compressed = nncf.compress_weights(model, **options)
    heard += lines
    if runtime == "openvino":
        save_openvino(compressed, file, source)
    else:
        onnx_weights.repair(compressed)
        onnx.save(compressed, str(file))


def _options(config: Config, bench: Workbench) -> dict[str, Any]:
    """Return what NNCF takes for 4 bits; for 8 bits it wants none of it to be named."""
    if config.asked == "int8":
        return {}
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedCompressionParameters, GroupSizeFallbackMode

    options: dict[str, Any] = {
        "group_size": config.group_size,
        "ratio": config.ratio,
        "all_layers": config.all_layers,
        # With a least size that nothing reaches, a width that the group doesn't divide gets 8 bits: other
        # modes raise, leave the layer in float, or take another size than the one asked for.
        "advanced_parameters": AdvancedCompressionParameters(
            group_size_fallback_mode=GroupSizeFallbackMode.ADJUST, min_adjusted_group_size=2**31
        ),
    }
    if config.ratio < 1:
        options["sensitivity_metric"] = nncf.SensitivityMetric(config.sensitivity)
    # Backends refuse what they don't know even if it is False.
    options |= {name: True for name in ("awq", "scale_estimation", "gptq") if getattr(config, name)}
    by_data = config.ratio < 1 and config.sensitivity != "weight_quantization_error"
    if by_data or config.awq or config.scale_estimation or config.gptq:
        options |= {"dataset": calibration_samples(bench), "subset_size": sample_count(bench)}
    return options


def _setting(config: Config) -> str:
    if config.asked == "int8":
        return config.precision
    parts = [config.precision, "per channel" if config.group_size == -1 else f"groups of {config.group_size}"]
    if config.ratio < 1:
        parts.append(f"ratio {config.ratio:g} by {config.sensitivity.replace('_', ' ')}")
    if config.all_layers:
        parts.append("all layers")
    names = {"gptq": "GPTQ", "scale_estimation": "scale estimation", "awq": "AWQ"}
    return ", ".join([*parts, *(text for name, text in names.items() if getattr(config, name))])


def _reason(error: Exception) -> str:
    if isinstance(error, CompressionError | CheckpointError):
        return error.problems[0].problem
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0] if type(error).__module__.startswith("nncf") else lines[-1]


def _check_left(config: Config, runtime: str, reason: str, bench: Workbench) -> None:
    """Raise unless ``runtime`` may stay in float because another one is compressed."""
    if runtime == "onnxruntime" and "openvino" in bench.models:
        return
    kind = CompressionError if runtime == "openvino" else CapabilityError
    raise kind(
        field=f"{_FIELD}.precision",
        problem=f"{runtime}: this model's weights can't be compressed so: {reason}",
        value=_setting(config),
        fix="take another precision or group size, fewer algorithms, "
        + ("or leave the pass out" if runtime == "openvino" else "or add openvino to compress.runtimes"),
    )


def _ignored(layers: Mapping[str, Sequence[Layer]], ignore: Sequence[str]) -> set[str]:
    """Return the names that stay in float.

    Raises:
        CapabilityError: if one of ``ignore`` fits no layer of any runtime's model.
    """
    names = list(dict.fromkeys(layer.name for found in layers.values() for layer in found))
    ignored: set[str] = set()
    for pattern in ignore:
        fitting = {name for name in names if name == pattern or fnmatchcase(name, pattern)}
        if not fitting:
            raise CapabilityError(
                field=f"{_FIELD}.ignore",
                problem="no layer of the exported models has this name",
                value=pattern,
                allowed=", ".join(names),
                fix=did_you_mean(pattern, names),
            )
        ignored |= fitting
    return ignored


def _check_widths(config: Config, runtime: str, layers: Sequence[Layer], ignored: set[str]) -> None:
    """Raise `CapabilityError` if no layer can get 4 bits, whatever is done."""
    types = (*coverage.PRODUCTS, coverage.EMBEDDING) if config.all_layers else coverage.PRODUCTS
    possible = [layer for layer in layers if layer.type in types and layer.name not in ignored]
    # NNCF keeps the last product from 4 bits unless the model's last layer, whatever it is, is ignored.
    if not config.all_layers and layers[-1].name not in ignored:
        possible = possible[:-1]
    widths = sorted({layer.width for layer in possible if layer.width})
    if not widths:
        raise CapabilityError(
            field=f"{_FIELD}.precision",
            problem=f"{runtime}: no layer can take 4 bits: convolutions and recurrent layers never do, "
            "embeddings and the last layer only with all_layers: true",
            value=config.precision,
            fix="take int8_asym" + ("" if config.all_layers else ", or set all_layers: true"),
        )
    if config.group_size != -1 and not any(width % config.group_size == 0 for width in widths):
        # 16 is the least that ONNX Runtime takes.
        fitting = [size for size in (128, 64, 32, 16) if any(width % size == 0 for width in widths)]
        raise CapabilityError(
            field=f"{_FIELD}.group_size",
            problem=f"{runtime}: the group size divides no layer's width",
            value=config.group_size,
            allowed=f"-1, or a divisor of one of the widths: {', '.join(map(str, widths))}",
            fix=f"set group_size: {fitting[0] if fitting else -1}, or take int8_asym",
        )


def _covered(config: Config, runtime: str, layers: Sequence[Layer], ignored: set[str]) -> dict[str, Any]:
    """Return what has the precision asked for.

    Raises:
        CompressionError: if no layer has.
    """
    reasons = {layer.name: _IGNORED for layer in layers if layer.name in ignored}
    if config.asked != "int8":
        eight = [layer for layer in layers if layer.precision == "int8"]
        last = next((layer for layer in reversed(layers) if layer.type in coverage.PRODUCTS), None)
        reasons |= {layer.name: _why_eight(config, layer, layer is last) for layer in eight}
    record = coverage.summarize(layers, reasons, "NNCF doesn't cover this layer", config.asked)
    if not record["changed_layers"]:
        raise CompressionError(
            field=f"{_FIELD}.precision",
            problem=f"{runtime}: no layer's weights became {config.asked}",
            value=config.precision,
            allowed="; ".join(f"{left['name']}: {left['reason']}" for left in record["left"])
            or "a model with weights",
            fix="leave the pass out" if config.asked == "int8" else "take int8_asym, or leave the pass out",
        )
    for left in record["left"]:
        log.warning(
            "%s: %s (%s) isn't %s: %s", runtime, left["name"], left["type"], config.asked, left["reason"]
        )
    return record


def _why_eight(config: Config, layer: Layer, last: bool) -> str:
    """Return why a layer of which 4 bits were asked has 8."""
    if layer.type == coverage.EMBEDDING and not config.all_layers:
        return "it has 8 bits: an embedding takes 4 only with all_layers"
    if layer.type not in (*coverage.PRODUCTS, coverage.EMBEDDING):
        return f"it has 8 bits: NNCF gives a {layer.type} no fewer"
    if last and not config.all_layers:
        return "it has 8 bits: the last layer takes 4 only with all_layers"
    if config.group_size != -1 and layer.width and layer.width % config.group_size:
        return f"it has 8 bits: its width {layer.width} is no multiple of the group size {config.group_size}"
    if config.ratio < 1:
        return "it has 8 bits: it is among the most sensitive, which ratio keeps from 4"
    return "it has 8 bits: NNCF gives it no fewer"
