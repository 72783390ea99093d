"""Fake quantizers of a torch module, exported: both runtimes answer as the module does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from fmdist.compression.passes import nncf_torch
from fmdist.compression.passes.trial import relative_rms
from fmdist.contracts import ExportSpec
from fmdist.deployment.runtime import open_model

pytestmark = pytest.mark.slow

ROUNDING = 0.01
"""Relative RMS difference of a few layers, of which rounding explains all."""


class Extremes(nn.Module):
    """A maximum or minimum between two layers. Shapes: B batch, T time, E features, K outputs."""

    def __init__(self, extreme: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(48, 32), nn.Linear(32, 8)
        self.extreme = extreme

    def forward(self, x_BTE: Tensor) -> Tensor:
        """Return (B, K) or (B, 1, K)."""
        outputs: Tensor = self.second(self.extreme(self.first(x_BTE)))
        return outputs


class ReadTwice(Extremes):
    """A maximum that two read."""

    def forward(self, x_BTE: Tensor) -> Tensor:
        """Return (B, K)."""
        most_BE = self.extreme(self.first(x_BTE))
        outputs_BK: Tensor = self.second(most_BE) + most_BE.mean(dim=1, keepdim=True).exp()
        return outputs_BK


class Positions(nn.Module):
    """Adds numbers in the module that has added sizes, as BERT's embeddings of `transformers` do."""

    def __init__(self) -> None:
        super().__init__()
        self.position, self.head = nn.Embedding(64, 48), nn.Linear(48, 8)
        self.register_buffer("places", torch.arange(64)[None])

    def forward(self, x_BTE: Tensor) -> Tensor:
        """Return (B, T, K)."""
        before, length = 2, x_BTE.shape[1]
        places_1T = self.get_buffer("places")[:, before : length + before]
        outputs_BTK: Tensor = self.head(x_BTE + self.position(places_1T))
        return outputs_BTK


class OneChannel(nn.Module):
    """Ends in a transposed convolution of one output channel, as a decoder of grey images does."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv1d(48, 16, 3), nn.ConvTranspose1d(16, 1, 3)

    def forward(self, x_BTE: Tensor) -> Tensor:
        """Return (B, 1, T)."""
        outputs_B1T: Tensor = self.last(torch.relu(self.first(x_BTE.transpose(1, 2))))
        return outputs_B1T


class Twins(nn.Module):
    """Sums two BatchNorms that have the same statistics and weights, as a new ResNet's block does."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = (
            nn.Sequential(nn.Conv1d(48, 16, 1, bias=False), nn.BatchNorm1d(16)) for _ in range(2)
        )

    def forward(self, x_BTE: Tensor) -> Tensor:
        """Return (B, 16, T)."""
        x_BET = x_BTE.transpose(1, 2)
        outputs_BET: Tensor = self.one(x_BET) + self.other(x_BET)
        return outputs_BET


MODULES: dict[str, Callable[[], nn.Module]] = {
    "max": lambda: Extremes(lambda x: x.amax(dim=1)),
    "max of dimensions that stay": lambda: Extremes(lambda x: x.amax(dim=1, keepdim=True)),
    "min": lambda: Extremes(lambda x: x.amin(dim=1)),
    "adaptive max": lambda: Extremes(
        lambda x: nn.functional.adaptive_max_pool1d(x.transpose(1, 2), 1).flatten(1)
    ),
    "max read twice": lambda: ReadTwice(lambda x: x.amax(dim=1)),
    "positions": Positions,
    "one channel": OneChannel,
    "equal constants": Twins,
}


@pytest.mark.parametrize("name", MODULES)
def test_both_runtimes_answer_as_the_module(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = MODULES[name]().eval()
    quantized = with_quantizers(module)
    write(quantized, tmp_path)
    for length in (24, 17):
        inputs = torch.randn(5, length, 48)
        with torch.no_grad():
            expected, in_float = quantized(inputs).numpy(), module(inputs).numpy()
        assert relative_rms(in_float, expected) > 0
        for runtime, file in (("openvino", "model.xml"), ("onnxruntime", "model.onnx")):
            found = open_model(tmp_path / file, runtime, "f32").run({"x": inputs.numpy()})
            assert relative_rms(found, expected) < ROUNDING, (runtime, length)


def test_weights_outside_of_their_range_become_the_same_integers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    quantized = with_quantizers(nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 8)).eval())
    with torch.no_grad():
        for _, quantizer in nncf_torch.quantizers(quantized):
            if quantizer.narrow_range:
                quantizer._scale_param_storage.mul_(0.5)  # as training might
        inputs = torch.randn(5, 24, 48)
        expected = quantized(inputs)
        nncf_torch.clip_weights(quantized, (inputs,))
        assert torch.equal(quantized(inputs), expected)
    write(quantized, tmp_path)
    for runtime, file in (("openvino", "model.xml"), ("onnxruntime", "model.onnx")):
        found = open_model(tmp_path / file, runtime, "f32").run({"x": inputs.numpy()})
        assert relative_rms(found, expected.numpy()) < ROUNDING, runtime
    graph = onnx.load(str(tmp_path / "model.onnx")).graph
    integers = [numpy_helper.to_array(value) for value in graph.initializer]
    weights = [value for value in integers if value.dtype == np.int8 and value.ndim == 2]
    assert [value.min() for value in weights] == [-127, -127]


def with_quantizers(module: nn.Module) -> nn.Module:
    samples = [(torch.randn(1, 24, 48),) for _ in range(20)]
    return nncf_torch.with_quantizers(module, samples, "mixed", []).eval()


def write(quantized: nn.Module, folder: Path) -> None:
    """Write ``model.xml`` and ``model.onnx``."""
    spec = ExportSpec(
        module=quantized,
        example_inputs=lambda batch, length: (torch.randn(batch, length or 24, 48),),
        input_names=("x",),
        output_names=("y",),
        dynamic_axes={"x": {0: "batch", 1: "length"}, "y": {0: "batch"}},
    )
    nncf_torch.write_openvino(spec, folder / "model.xml")
    nncf_torch.write_onnx(spec, folder / "model.onnx")
