"""NNCF as its documentation calls it: `nncf.quantize` on the OpenVINO model, with its defaults.

With ``settings: {"grid": [...]}`` it makes the calls that fmdist's quantize pass makes, one after the other,
so that what the pipeline adds to them can be told.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import nncf
from nncf.quantization.advanced_parameters import AdvancedSmoothQuantParameters
from nncf.quantization.range_estimator import RangeEstimatorParametersSet

from benchmarks.compression_peers.job import Job, read, tell
from fmdist.deployment.runtime import load_openvino


def main() -> None:
    """Quantize once, or by every setting of the grid."""
    job = read()
    openvino = load_openvino()
    began = time.perf_counter()
    for number, setting in enumerate(job.settings.get("grid", [None])):
        model = openvino.Core().read_model(job.openvino)
        dataset = nncf.Dataset([{job.input: row[None]} for row in job.rows()])
        quantized = quantize(model, dataset, job, setting)
        file = Path(job.output) / ("model.xml" if number == 0 else f"model.{number}.xml")
        openvino.save_model(quantized, str(file), compress_to_fp16=False)
    tell(job, began, {"openvino": str(Path(job.output) / "model.xml")})


def quantize(model: Any, dataset: Any, job: Job, setting: dict[str, str] | None) -> Any:
    """Return the INT8 model."""
    size = len(job.rows())
    if setting is None:
        return nncf.quantize(model, dataset, subset_size=size)
    ranges = RangeEstimatorParametersSet.MINMAX if setting["ranges"] == "minmax" else None
    return nncf.quantize(
        model,
        dataset,
        subset_size=size,
        preset=nncf.QuantizationPreset(setting["preset"]),
        fast_bias_correction=setting["bias_correction"] != "full",
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            disable_bias_correction=setting["bias_correction"] == "none",
            activations_range_estimator_params=ranges,
            smooth_quant_alphas=AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
        ),
    )


if __name__ == "__main__":
    main()
