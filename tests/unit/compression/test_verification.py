from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fmdist import component
from fmdist.compression import benchmark, verification
from fmdist.compression.child import run_child
from fmdist.compression.config import BenchmarkConfig
from fmdist.compression.export import export_onnx, export_openvino
from fmdist.compression.subject import Subject
from fmdist.compression.verification import TORCH_ROW, Model, ways
from fmdist.errors import CompressionError


def exported(subject: Subject, folder: Path) -> list[Model]:
    """Return both runtimes' FP32 models."""
    export_openvino(subject.export, folder / "model.xml")
    export_onnx(replace(subject.export, onnx_route="torchscript"), folder / "model.onnx")
    files = {"openvino": {"fp32": folder / "model.xml"}, "onnxruntime": {"fp32": folder / "model.onnx"}}
    return ways(files)


def scratch(folder: Path) -> Path:
    made = folder / "scratch"
    made.mkdir()
    return made


def test_what_was_written_equals_torch_and_is_scored(subject: Subject, tmp_path: Path) -> None:
    record = verification.verify(subject, None, exported(subject, tmp_path), scratch(tmp_path))
    assert [(row["runtime"], row["batch"]) for row in record["parity"]] == [
        ("openvino", 2),
        ("openvino", 5),
        ("onnxruntime", 2),
        ("onnxruntime", 5),
    ]
    assert all(0 < row["relative"] <= 1e-5 for row in record["parity"])
    names = [(row["runtime"], row["precision"]) for row in record["results"]]
    assert names == [
        ("torch", "f32"),
        ("openvino", "f32"),
        ("openvino", "default"),
        ("onnxruntime", "default"),
    ]
    torch_row, float_row, _, onnx_row = record["results"]
    assert torch_row["drop"] == 0
    assert float_row["metrics"]["accuracy"] == torch_row["metrics"]["accuracy"]
    assert float_row["executed"] == onnx_row["executed"] == {"f32": 5}
    assert set(torch_row["metrics"]) == {"loss", "accuracy", "f1_macro"}
    assert record["validation"]["size"] == len(subject.splits.validation)


class Shifted(nn.Module):
    """The model, a little off."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, image: Tensor) -> Tensor:
        return torch.as_tensor(self.body(image)) * 1.0001


def test_an_unfaithful_export_fails(subject: Subject, tmp_path: Path) -> None:
    models = exported(subject, tmp_path)
    off = replace(subject, export=replace(subject.export, module=Shifted(subject.export.module)))
    with pytest.raises(CompressionError, match="FP32 outputs differ from torch's at batch size 2"):
        verification.verify(off, None, models, scratch(tmp_path))


@pytest.mark.parametrize("value", [1.0 + 2e-5, np.nan])
def test_parity_fails_beyond_the_tolerance(value: float) -> None:
    reference = np.array([[1.0, -0.5]], np.float32)
    inside = reference + np.float32(5e-6)
    assert verification._difference("openvino", "batch size 1", inside, reference)["relative"] <= 1e-5
    outside = np.array([[value, -0.5]], np.float32)
    with pytest.raises(CompressionError, match="differ from torch's"):
        verification._difference("openvino", "batch size 1", outside, reference)


@pytest.mark.parametrize("module", ["torch", "fmdist.models.cnn", "fmdist.training.loop"])
def test_the_probe_refuses_model_code(module: str) -> None:
    code = (
        "import sys; from fmdist.deployment.probe import Refuse; sys.meta_path.insert(0, Refuse()); "
        f"import {module}"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert "must not be needed to run an artifact" in ended.stderr


def test_a_child_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(CompressionError, match=r"ended with code 1 .*KeyError: 'output'"):
        run_child("fmdist.deployment.probe", {"models": []}, tmp_path)


@pytest.mark.slow
def test_every_model_is_measured_beside_torch(subject: Subject, tmp_path: Path) -> None:
    models = exported(subject, tmp_path)
    config = BenchmarkConfig(samples=10, batch_size=8)
    measured = benchmark.measure(subject.export, models, config, scratch(tmp_path))
    assert set(measured["rows"]) == {TORCH_ROW, *(model.name for model in models)}
    for row in measured["rows"].values():
        assert 0 < row["latency_ms"]["p10"] <= row["latency_ms"]["median"]
        assert row["throughput_per_s"] > 0
        assert 0 < row["memory"]["added_bytes"] < row["memory"]["peak_bytes"]
    compiled = measured["compiled"]
    assert compiled["latency_ms"]["median"] > 0
    assert compiled["difference"] < 1e-4
    samples = dict.fromkeys((*measured["rows"], benchmark.COMPILED), 10)
    assert measured["conditions"]["samples"] == samples
    assert measured["conditions"]["torch_threads"] == 1


def test_without_a_compiler_torch_compile_is_left_out_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object, dynamic: bool) -> None:
        message = "InvalidCxxCompiler: no C++ compiler found"
        raise RuntimeError(message)

    monkeypatch.setattr(torch, "compile", lambda module, dynamic: partial(refuse, dynamic=dynamic))
    compiled, about = benchmark._compiled(nn.Linear(2, 1), [(torch.zeros(1, 2),)], wanted=True)
    assert compiled is None
    assert "no C++ compiler found" in about["left"]


PLUGIN = '''
"""A network from outside."""

from torch import nn

from fmdist.models.base import ModelConfig


class Net(nn.Module):
    """One layer."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def forward(self, image):
        return self.layers(image)


class Config(ModelConfig):
    """No settings."""

    def build(self, spec, outputs):
        return Net()
'''


@pytest.mark.slow
def test_a_model_of_a_plugin_folder_is_measured(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models/outsider.py").write_text(PLUGIN)
    monkeypatch.setattr(component, "_plugin_folders", [])
    for name in ("fmdist_plugins", "fmdist_plugins.models", "fmdist_plugins.models.outsider"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    component.add_plugin_folder(tmp_path)
    module = component.load(component.find("models", "outsider"))().build(subject.splits.spec, 10)
    config = BenchmarkConfig(samples=10, batch_size=2, torch_compile=False, memory=False)
    spec = replace(subject.export, module=module)
    assert set(benchmark.measure(spec, [], config, scratch(tmp_path))["rows"]) == {TORCH_ROW}


def test_a_model_that_no_other_process_can_import_is_refused(subject: Subject, tmp_path: Path) -> None:
    class Local(nn.Module):
        pass

    with pytest.raises(CompressionError, match="can't be given to a process of its own"):
        benchmark.measure(replace(subject.export, module=Local()), [], BenchmarkConfig(), tmp_path)


def test_models_take_turns_in_blocks() -> None:
    order: list[str] = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    seconds = benchmark.interleaved(calls, samples=10, fewest=10, deadline=0.0)
    # Each block starts with one call that isn't timed.
    assert order == (["a"] * 6 + ["b"] * 6) * 2
    assert {name: len(times) for name, times in seconds.items()} == {"a": 10, "b": 10}
    # A deadline that has passed ends it after the fewest.
    assert len(benchmark.interleaved(calls, samples=100, fewest=10, deadline=0.0)["a"]) == 10
