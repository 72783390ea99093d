from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fmdist.compression.export import export_onnx, export_openvino
from fmdist.compression.subject import Subject
from fmdist.contracts import ExportSpec
from fmdist.deployment.runtime import open_model
from fmdist.errors import CompressionError

TOLERANCE = 1e-5


def assert_parity(spec: ExportSpec, file: Path, runtime: str) -> None:
    session = open_model(file, runtime, "f32", threads=1)
    for batch in (1, 7):
        inputs = spec.example_inputs(batch, 0)
        with torch.no_grad():
            expected = spec.module(*inputs).numpy()
        outputs = session.run({"image": inputs[0].numpy()})
        assert outputs.dtype == np.float32
        assert np.abs(outputs - expected).max() <= TOLERANCE * np.abs(expected).max()
    assert set(session.executed()) == {"f32"}


@pytest.mark.parametrize("route", ["trace", "exported"])
def test_openvino_equals_torch(subject: Subject, tmp_path: Path, route: Literal["trace", "exported"]) -> None:
    spec = replace(subject.export, openvino_route=route)
    export_openvino(spec, tmp_path / "model.xml")
    assert_parity(spec, tmp_path / "model.xml", "openvino")
    weights = sum(parameter.nbytes for parameter in spec.module.parameters())
    # Float16 would be half of it.
    assert (tmp_path / "model.bin").stat().st_size > 0.9 * weights


@pytest.mark.parametrize("route", [pytest.param("dynamo", marks=pytest.mark.slow), "torchscript"])
def test_onnx_equals_torch(subject: Subject, tmp_path: Path, route: Literal["dynamo", "torchscript"]) -> None:
    spec = replace(subject.export, onnx_route=route)
    export_onnx(spec, tmp_path / "model.onnx")
    assert_parity(spec, tmp_path / "model.onnx", "onnxruntime")
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_exporting_leaves_the_module_as_it_was(subject: Subject, tmp_path: Path) -> None:
    module = subject.export.module
    before = {name: value.clone() for name, value in module.state_dict().items()}
    module.train()
    try:
        export_openvino(subject.export, tmp_path / "model.xml")
        assert module.training
    finally:
        module.eval()
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


class TakesAll(nn.Module):
    """Adds what it is given, however many."""

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.cat([value.flatten(1) for value in inputs], dim=1) * 2


@pytest.mark.slow
def test_a_forward_of_any_number_of_inputs_keeps_its_free_batch(tmp_path: Path) -> None:
    spec = ExportSpec(
        module=TakesAll(),
        example_inputs=lambda batch, length: (torch.ones(batch, 3), torch.ones(batch, 2)),
        input_names=("left", "right"),
        dynamic_axes={name: {0: "batch"} for name in ("left", "right", "output")},
    )
    export_onnx(spec, tmp_path / "model.onnx")
    export_openvino(spec, tmp_path / "model.xml")
    inputs = {"left": np.ones((7, 3), np.float32), "right": np.zeros((7, 2), np.float32)}
    for file, runtime in (("model.onnx", "onnxruntime"), ("model.xml", "openvino")):
        outputs = open_model(tmp_path / file, runtime, "f32").run(inputs)
        np.testing.assert_array_equal(outputs, [[2, 2, 2, 0, 0]] * 7)


class Unexportable(nn.Module):
    """Fails whoever runs it."""

    def forward(self, image: Tensor) -> Tensor:
        message = "no way"
        raise RuntimeError(message)


def test_a_module_that_can_not_be_exported_is_named(subject: Subject, tmp_path: Path) -> None:
    spec = replace(subject.export, module=Unexportable())
    with pytest.raises(CompressionError, match=r"compress\.export\.openvino: the model can't be exported"):
        export_openvino(spec, tmp_path / "model.xml")
    with pytest.raises(CompressionError, match=r"compress\.export\.onnxruntime: the model can't be exported"):
        export_onnx(spec, tmp_path / "model.onnx")
