"""Programs of torch's own beside the runtimes' models: written, run without the model's code, compared."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from fmdist.compression.config import BenchmarkConfig, CompressConfig
from fmdist.compression.pipeline import compress
from fmdist.compression.subject import Subject
from fmdist.deployment.artifact import read_manifest
from fmdist.errors import CompressionError, DependencyMissing

FAST = BenchmarkConfig(samples=10, batch_size=8, torch_compile=False, memory=False)


def config(*programs: str) -> CompressConfig:
    return CompressConfig(runtimes=("onnxruntime",), programs=programs, benchmark=FAST)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_torch_export_program_takes_any_batch(subject: Subject, tmp_path: Path) -> None:
    made = compress(subject, config("torch_export"), tmp_path / "artifact")
    record = made.manifest["programs"]["torch_export"]
    assert record["file"] == "program.pt2"
    assert record["difference"] <= 1e-5
    assert "program.pt2" in made.manifest["files"]
    program = torch.export.load(tmp_path / "artifact" / "program.pt2").module()
    for batch in (1, 7):
        (images,) = subject.export.example_inputs(batch, 0)
        with torch.no_grad():
            assert torch.allclose(program(images), subject.export.module(images), atol=1e-5)
    # It is no longer asked for, so it goes.
    compress(subject, config(), tmp_path / "artifact")
    assert not (tmp_path / "artifact" / "program.pt2").exists()
    assert read_manifest(tmp_path / "artifact")["programs"] == {}


class Branching(torch.nn.Module):
    """Does what no program can say."""

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return image.flatten(1)[:, :10] * (1 if float(image.sum()) > 0 else 2)


@pytest.mark.slow
def test_a_module_that_is_no_program_is_refused_by_name(subject: Subject, tmp_path: Path) -> None:
    spec = replace(subject.export, module=Branching(), onnx_route="torchscript")
    with pytest.raises(CompressionError, match=r"torch_export: the model can't be exported"):
        compress(replace(subject, export=spec), config("torch_export"), tmp_path / "artifact")


def test_an_extra_that_is_missing_is_named_before_any_work(subject: Subject, tmp_path: Path) -> None:
    if "executorch" in sys.modules:
        pytest.skip("executorch is installed")
    with pytest.raises(DependencyMissing, match=r"executorch.*pip install 'fmdist\[executorch\]'"):
        compress(subject, config("executorch"), tmp_path / "artifact")
    assert not (tmp_path / "artifact").exists()
