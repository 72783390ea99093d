"""INT8 for ONNX Runtime of a model that masks its attention: only its products can be quantized."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fmdist.compression.export import export_onnx
from fmdist.compression.passes.onnx_static import PRODUCTS, prepare, quantize_onnx
from fmdist.contracts import DataSpec, InputSpec, TargetSpec
from fmdist.deployment.runtime import open_model
from fmdist.models.transformer_seq2seq import Config

SIZE = 12


@pytest.mark.slow
def test_products_alone_keep_what_masks_would_drown(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = (InputSpec("source", (None,), "int64", SIZE, 8), InputSpec("prefix", (None,), "int64", SIZE, 7))
    config = Config(width=16, heads=2, layers=1, feedforward=32)
    module = config.build(DataSpec(inputs, TargetSpec("tokens", size=SIZE)), SIZE).eval()
    export = config.export(module, inputs)
    export_onnx(export, tmp_path / "float.onnx")
    prepare(tmp_path / "float.onnx", tmp_path / "prepared.onnx")
    example = export.example_inputs(32, 8)
    fed = {name: value.numpy() for name, value in zip(export.input_names, example, strict=True)}
    with torch.no_grad():
        expected = module(*example).numpy()
    errors = {}
    for setting in ("asymmetric", PRODUCTS):
        file = tmp_path / f"{setting}.onnx"
        quantize_onnx(tmp_path / "prepared.onnx", file, fed, setting)
        difference = open_model(file, "onnxruntime").run(fed) - expected
        errors[setting] = float(np.sqrt((difference**2).mean() / (expected**2).mean()))
    assert errors[PRODUCTS] < 0.05
    assert not errors["asymmetric"] < 2 * errors[PRODUCTS]
