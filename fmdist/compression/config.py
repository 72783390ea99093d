"""The recipe's ``compress:`` section."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated, Literal

from pydantic import Field, field_validator

from fmdist.compression.passes.base import PassConfig
from fmdist.recipe.schema import Plugin, Section

Runtime = Literal["openvino", "onnxruntime"]


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


class CompressConfig(Section):
    """Export to OpenVINO and ONNX, the passes in the order given, verification, benchmark."""

    passes: tuple[Annotated[PassConfig, Plugin("passes")], ...] = ()
    """What to do to the model, in this order, each `{kind: ...}`; none exports it in float32."""
    max_drop: float = Field(default=0.01, ge=0)
    """Loss of the task's primary metric allowed on the validation split, in the metric's own units."""
    calibration_samples: int = Field(default=300, ge=1)
    """Training samples, drawn evenly over the classes, from which value ranges are measured."""
    runtimes: tuple[Runtime, ...] | None = Field(default=None, min_length=1)
    """For which runtimes to write models; null: for all that the model's family exports to."""
    benchmark: BenchmarkConfig = Field(default_factory=BenchmarkConfig)
    """How speed is measured."""

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
        if {"quantize", "compress_weights"} <= {settings.kind() for settings in passes}:
            message = (
                "quantize and compress_weights both replace the weights, so only one may stand here: "
                "quantize rounds activations too, which is faster; compress_weights keeps them in float"
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
