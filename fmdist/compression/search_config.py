"""The limits that a search for a plan keeps to."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from fmdist.recipe.schema import Section

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


class SearchConfig(Section):
    """Find the cheapest plan of passes that keeps to these limits, and to `max_drop`."""

    max_size: int | str | None = Field(default=None)
    """Bytes of the model's files, or a text such as `500KB` or `2MB`."""
    max_latency: float | None = Field(default=None, gt=0)
    """Milliseconds for one sample, median, at the benchmark's number of threads."""
    min_speedup: float | None = Field(default=None, gt=0)
    """Times as fast as the original, one sample."""
    runtime: Literal["openvino", "onnxruntime"] = "openvino"
    """Whose model has to keep to them."""
    steps: int = Field(default=5, ge=1)
    """Steps of the bisection for the share of channels to remove; each measures, none trains."""

    @field_validator("max_size")
    @classmethod
    def _in_bytes(cls, value: Any) -> Any:
        if isinstance(value, str):
            parts = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]+)?\s*", value)
            unit = _UNITS.get((parts[2] or "B").upper()) if parts else None
            if parts is None or unit is None:
                message = f"'{value}' is no size; write bytes, or a number with KB, MB, GB, KiB, MiB or GiB"
                raise ValueError(message)
            value = round(float(parts[1]) * unit)
        if value is not None and value < 1:
            message = "a model has at least one byte"
            raise ValueError(message)
        return value

    @model_validator(mode="after")
    def _some_limit(self) -> SearchConfig:
        if self.max_size is None and self.max_latency is None and self.min_speedup is None:
            message = "give at least one of max_size, max_latency and min_speedup"
            raise ValueError(message)
        return self
