"""The recipe's ``compress:`` section."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, field_validator

from fmdist.compression.passes.base import PassConfig
from fmdist.compression.search_config import SearchConfig
from fmdist.compression.sensitivity_config import SensitivityConfig
from fmdist.recipe.schema import Plugin, Section

Runtime = Literal["openvino", "onnxruntime"]
Program = Literal["torch_export", "executorch"]

REPLACES = {
    "quantize": "rounds activations too, which is faster",
    "quantize_aware": "does so and trains the model on meanwhile, which loses less",
    "compress_weights": "keeps activations in float",
}
"""Passes that write the weights in fewer bits -> what tells them apart."""


class BenchmarkConfig(Section):
    """How latency and throughput are measured."""

    threads: int = Field(default=1, ge=1)
    """CPU threads that torch and every runtime may use."""
    samples: int = Field(default=200, ge=10)
    """Timed inferences of one sample, per model."""
    batch_size: int = Field(default=64, ge=1)
    """Samples per inference when throughput is measured."""
    max_seconds: float = Field(default=10.0, gt=0)
    """Measuring ends after this time, in seconds, once every model has 10 inferences."""
    torch_compile: bool = True
    """Measure the original through `torch.compile` too, compiled for both sizes, which takes seconds."""
    memory: bool = True
    """Measure the peak memory of every model, each in a process of its own."""


class CompressConfig(Section):
    """Export to OpenVINO and ONNX, the passes in the order given, verification, benchmark."""

    passes: tuple[Annotated[PassConfig, Plugin("passes")], ...] = ()
    """What to do to the model, in this order, each `{kind: ...}`; none exports it in float32."""
    max_drop: float = Field(default=0.01, ge=0)
    """Loss of the task's primary metric allowed on the validation split, in the metric's own units."""
    calibration_samples: int | None = Field(default=None, ge=1)
    """Training samples, drawn evenly over the classes, from which value ranges are measured; null: 300, or
    all if there are fewer."""
    runtimes: tuple[Runtime, ...] | None = Field(default=None, min_length=1)
    """For which runtimes to write models; null: for all that the model's family exports to."""
    programs: tuple[Program, ...] = ()
    """Write these too, in float32, as the passes on the torch model leave it: `torch_export`, a program for
    torch without the model's code, and `executorch`, one for phones and boards (extra `executorch`)."""
    search: SearchConfig | None = None
    """Find the cheapest plan that keeps to limits: passes are added to those above where it takes them."""
    license: str | None = None
    """Of the model, as its card says it: an SPDX identifier such as `apache-2.0`."""
    keep_stages: bool = True
    """Keep what the stages left, so that a changed setting repeats only what depends on it; without them the
    artifact is smaller."""
    benchmark: BenchmarkConfig = Field(default_factory=BenchmarkConfig)
    """How speed is measured."""
    sensitivity: SensitivityConfig = Field(default_factory=SensitivityConfig)
    """How `--analyze`, and a pass that allocates by sensitivity, measures the layers."""

    @field_validator("passes")
    @classmethod
    def _each_once(cls, passes: tuple[PassConfig, ...]) -> tuple[PassConfig, ...]:
        kinds = [settings.kind() for settings in passes]
        if twice := {kind for kind in kinds if kinds.count(kind) > 1}:
            message = f"a pass may stand here once; remove the second {', '.join(sorted(twice))}"
            raise ValueError(message)
        return passes

    @field_validator("passes")
    @classmethod
    def _weights_once(cls, passes: tuple[PassConfig, ...]) -> tuple[PassConfig, ...]:
        kinds = [settings.kind() for settings in passes]
        if len(found := [kind for kind in REPLACES if kind in kinds]) > 1:
            message = (
                f"{' and '.join(found)} each replace the weights, so only one may stand here: "
                + "; ".join(f"{kind} {REPLACES[kind]}" for kind in found)
            )
            raise ValueError(message)
        return passes

    @field_validator("passes")
    @classmethod
    def _in_order(cls, passes: tuple[PassConfig, ...]) -> tuple[PassConfig, ...]:
        for before, after in pairwise(passes):
            if after.order < before.order:
                message = f"{after.kind()} must stand before {before.kind()}, which works on what it leaves"
                raise ValueError(message)
        return passes

    @field_validator("runtimes")
    @classmethod
    def _each_runtime_once(cls, runtimes: tuple[Runtime, ...] | None) -> tuple[Runtime, ...] | None:
        if runtimes is not None and len(set(runtimes)) != len(runtimes):
            message = "name each runtime once"
            raise ValueError(message)
        return runtimes
