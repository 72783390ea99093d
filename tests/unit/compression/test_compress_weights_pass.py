from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper
from pydantic import ValidationError
from torch import Tensor, nn

from fmdist.compression.config import CompressConfig
from fmdist.compression.export import export_onnx, export_openvino
from fmdist.compression.passes import compress_weights, coverage, onnx_weights
from fmdist.compression.passes.base import Workbench
from fmdist.compression.passes.compress_weights import _covered, _ignored
from fmdist.compression.passes.coverage import Layer
from fmdist.compression.passes.trial import run
from fmdist.compression.pipeline import _workbench
from fmdist.compression.subject import Subject
from fmdist.deployment.artifact import VARIANTS
from fmdist.deployment.runtime import open_model
from fmdist.errors import CapabilityError, CompressionError
from fmdist.reports import artifact as report

Runtime = Literal["openvino", "onnxruntime"]
Make = Callable[..., Workbench]
BOTH = ("openvino", "onnxruntime")


class Wide(nn.Module):
    """A digits classifier of products of the widths 64, 64, 64, 64 and 9."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.first = nn.Linear(64, 64)
            self.second = nn.Linear(64, 64)
            self.third = nn.Linear(64, 64)
            self.narrow = nn.Linear(64, 9)
            self.last = nn.Linear(9, 10)

    def forward(self, image: Tensor) -> Tensor:
        hidden = torch.relu(self.first(image.flatten(1)))
        hidden = hidden + torch.relu(self.second(hidden))
        hidden = hidden + torch.relu(self.third(hidden))
        output: Tensor = self.last(torch.relu(self.narrow(hidden)))
        return output


@pytest.fixture
def bench(subject: Subject, tmp_path: Path) -> Make:
    """Return a function that exports a module and gives the pass's workbench."""

    def make(
        runtimes: tuple[Runtime, ...], module: nn.Module | None = None, max_drop: float = 1.0
    ) -> Workbench:
        spec = replace(subject.export, module=(module or subject.export.module).eval())
        files = {"openvino": tmp_path / "float.xml", "onnxruntime": tmp_path / "float.onnx"}
        for runtime in runtimes:
            (export_openvino if runtime == "openvino" else export_onnx)(spec, files[runtime])
        drafts = tmp_path / "drafts"
        drafts.mkdir()
        config = CompressConfig(calibration_samples=20)
        models: dict[str, Path] = {name: file for name, file in files.items() if name in runtimes}
        made = _workbench(subject, max_drop, config, models, drafts)
        # The original is the module, which the subject's weights know nothing of.
        return replace(made, reference=run(made, files[runtimes[0]], runtimes[0], "f32"))

    return make


def four(**settings: Any) -> compress_weights.Config:
    return compress_weights.Config(**{"precision": "int4_sym", "group_size": 32, **settings})


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"ratio": 0.5}, "int8_asym has no ratio: only 4 bits"),
        ({"group_size": 64, "awq": True}, "int8_asym has no group_size, awq"),
        ({"precision": "int4_sym", "group_size": 0}, "at least one weight"),
        ({"precision": "int4_sym", "ratio": 0.0}, "greater than 0"),
        ({"precision": "int4"}, "int4_sym"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        compress_weights.Config.model_validate(settings)


def test_weights_are_not_compressed_and_quantized() -> None:
    passes = ({"kind": "compress_weights"}, {"kind": "quantize"})
    with pytest.raises(ValidationError, match="only one may stand here"):
        CompressConfig.model_validate({"passes": passes})


def test_the_variants_are_known_where_artifacts_are_read() -> None:
    assert VARIANTS == report.VARIANTS
    precisions = ("int8_asym", "int8_sym", "int4_sym", "int4_asym", "nf4")
    variants = {compress_weights.Config(precision=name).asked + "_weights" for name in precisions}  # type: ignore[arg-type]
    assert variants == {"int8_weights", "int4_weights", "nf4_weights"} <= set(VARIANTS)


LAYERS = [
    Layer("embed", "Gather", (50, 64), "int8", 64),
    Layer("conv", "Convolution", (8, 1, 3, 3), "int8"),
    Layer("fits", "MatMul", (8, 64), "int4", 64),
    Layer("odd", "MatMul", (8, 9), "int8", 9),
    Layer("kept", "MatMul", (8, 64), "float", 64),
    Layer("lstm", "LSTMSequence", (1, 32, 8), "float"),
    Layer("last", "MatMul", (8, 64), "int8", 64),
]


def test_coverage_says_why_a_layer_has_other_bits_than_asked() -> None:
    record = _covered(four(), "openvino", LAYERS, {"kept"})
    assert (record["layers"], record["changed_layers"], record["changed_parameters"]) == (7, 1, 512)
    assert record["precisions"] == {"float": 2, "int4": 1, "int8": 4}
    assert {left["name"]: left["reason"] for left in record["left"]} == {
        "embed": "it has 8 bits: an embedding takes 4 only with all_layers",
        "conv": "it has 8 bits: NNCF gives a Convolution no fewer",
        "odd": "it has 8 bits: its width 9 is no multiple of the group size 32",
        "kept": "ignored by the recipe",
        "lstm": "recurrent weights are not quantized by this method",
        "last": "it has 8 bits: the last layer takes 4 only with all_layers",
    }


def test_a_sensitive_layer_is_named_so() -> None:
    layers = [LAYERS[2], LAYERS[2]._replace(name="tender", precision="int8"), LAYERS[-1]]
    record = _covered(four(ratio=0.5), "openvino", layers, set())
    assert (
        record["left"][0]["reason"]
        == "it has 8 bits: it is among the most sensitive, which ratio keeps from 4"
    )


def test_no_layer_with_the_precision_is_an_error() -> None:
    with pytest.raises(CompressionError, match="no layer's weights became int4") as caught:
        _covered(four(), "openvino", [LAYERS[3], LAYERS[-1]], set())
    assert "odd: it has 8 bits: its width 9 is no multiple of the group size 32" in str(caught.value)
    assert "Take int8_asym" in str(caught.value)


def test_an_unknown_name_is_answered_with_the_names() -> None:
    layers = {"openvino": LAYERS, "onnxruntime": [Layer("/fits/MatMul", "MatMul", (64, 8), "float", 64)]}
    assert _ignored(layers, ("*fits*", "conv")) == {"fits", "/fits/MatMul", "conv"}
    with pytest.raises(CapabilityError, match=r"got 'embedd'.*/fits/MatMul.*[Dd]id you mean 'embed'"):
        _ignored(layers, ("embedd",))


def test_a_layer_that_vanished_is_an_error() -> None:
    two = [
        Layer("lstm", "LSTMSequence", (1, 4, 2), "float"),
        Layer("lstm", "LSTMSequence", (1, 4, 1), "float"),
    ]
    written = [two[0]._replace(precision="int8"), two[1]]
    assert [layer.precision for layer in coverage.after(two, written)] == ["int8", "float"]
    with pytest.raises(CompressionError, match="lacks a layer"):
        coverage.after(two, written[:1])


def test_what_onnx_runtime_cannot_read_is_repaired() -> None:
    points = np.array([[1, 2, 3], [4, 5, 15]], np.uint8)
    values: dict[str, np.ndarray[Any, Any]] = {
        "w": np.zeros((2, 3, 16), np.uint8),
        "s": np.ones((2, 3), np.float32),
        "z": points,
    }
    values |= {"c": np.zeros((4, 1, 3, 3), np.int8), "cs": np.arange(4, dtype=np.float32).reshape(4, 1, 1)}
    nodes = [
        helper.make_node("MatMulNBits", ["x", "w", "s", "z"], ["y"], K=96, N=2, bits=4, block_size=32),
        helper.make_node("DequantizeLinear", ["c", "cs"], ["d"], axis=0),
    ]
    stored = [numpy_helper.from_array(value, name) for name, value in values.items()]
    model = helper.make_model(helper.make_graph(nodes, "two layers", [], [], stored))
    onnx_weights.repair(model)
    onnx_weights.repair(model)
    written = {value.name: numpy_helper.to_array(value) for value in model.graph.initializer}
    assert written["z"].tolist() == [[0x21, 0x03], [0x54, 0x0F]]
    assert written["cs"].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert written["s"].shape == (2, 3)


@pytest.mark.parametrize("runtime", BOTH)
def test_widths_are_those_of_the_sums(bench: Make, runtime: Runtime) -> None:
    made = bench((runtime,), Wide())
    layers = compress_weights._READ[runtime](made.models[runtime])
    assert [layer.width for layer in layers] == [64, 64, 64, 64, 9]
    assert {layer.precision for layer in layers} == {"float"}


@pytest.mark.parametrize("runtime", BOTH)
def test_a_group_that_divides_nothing_is_refused_before_any_work(bench: Make, runtime: Runtime) -> None:
    made = bench((runtime,), Wide())
    with pytest.raises(CapabilityError, match="divides no layer's width, got 128") as caught:
        four(group_size=128).apply(made)
    assert "one of the widths: 64" in str(caught.value)
    assert "Set group_size: 64" in str(caught.value)
    assert not list(made.folder.glob("*int4*"))


def test_a_network_without_products_is_refused(bench: Make) -> None:
    with pytest.raises(CapabilityError, match=r"no layer can take 4 bits.*Take int8_asym"):
        four().apply(bench(("openvino",)))


@pytest.mark.slow
@pytest.mark.parametrize("runtime", BOTH)
@pytest.mark.parametrize("precision", ["int8_asym", "int8_sym"])
def test_every_layer_holds_int8_and_says_so(bench: Make, runtime: Runtime, precision: Any) -> None:
    outcome = compress_weights.Config(precision=precision).apply(bench((runtime,), max_drop=0.1))
    assert outcome.variant == "int8_weights"
    covered = outcome.coverage[runtime]
    assert covered["layers"] == covered["changed_layers"] == 5
    assert covered["parameters"] == covered["changed_parameters"] == 8 * 9 * 9 + 16 * 9 * 24 + 160
    assert covered["precisions"] == {"int8": 5}
    (candidate,) = outcome.candidates
    assert 0 < candidate["error"] < 0.1
    executed = open_model(outcome.models[runtime], runtime, "f32").executed()
    assert executed.get("int8", 0) == 0 < executed["f32 with int8 weights"]


@pytest.mark.slow
@pytest.mark.parametrize("runtime", BOTH)
@pytest.mark.parametrize("precision", ["int4_sym", "int4_asym"])
def test_four_bits_are_where_they_can_be(bench: Make, runtime: Runtime, precision: str) -> None:
    outcome = four(precision=precision, all_layers=True).apply(bench((runtime,), Wide()))
    assert outcome.variant == "int4_weights"
    covered = outcome.coverage[runtime]
    assert covered["precisions"] == {"int4": 4, "int8": 1}
    (left,) = covered["left"]
    assert left["reason"] == "it has 8 bits: its width 9 is no multiple of the group size 32"
    executed = open_model(outcome.models[runtime], runtime, "f32").executed()
    assert executed["f32 with int4 weights"] == 4
    (candidate,) = outcome.candidates
    # A wrong order of zero points or groups would leave nothing of the outputs.
    assert 0 < candidate["error"] < 0.2


@pytest.mark.slow
def test_the_ratio_and_what_is_ignored_hold(bench: Make) -> None:
    made = bench(("openvino",), Wide())
    names = [layer.name for layer in coverage.openvino_layers(made.models["openvino"])]
    config = four(ratio=0.5, ignore=(names[0],), sensitivity="mean_activation_magnitude")
    covered = config.apply(made).coverage["openvino"]
    assert covered["precisions"]["float"] == 1
    assert 1 <= covered["precisions"]["int4"] < 3
    reasons = {left["name"]: left["reason"] for left in covered["left"]}
    assert reasons[names[0]] == "ignored by the recipe"
    assert any("most sensitive" in reason for reason in reasons.values())


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"scale_estimation": True}, {"gptq": True}, {"awq": True}])
def test_algorithms_on_calibration_samples_keep_the_coverage(bench: Make, settings: dict[str, bool]) -> None:
    outcome = four(**settings).apply(bench(("openvino",), Wide()))
    assert outcome.coverage["openvino"]["precisions"]["int4"] >= 3
    (candidate,) = outcome.candidates
    assert 0 < candidate["error"] < 0.5


@pytest.mark.slow
def test_a_runtime_that_cannot_stays_in_float_with_the_reason(bench: Make) -> None:
    made = bench(BOTH, Wide())
    outcome = compress_weights.Config(precision="nf4", group_size=32).apply(made)
    assert outcome.variant == "nf4_weights"
    assert set(outcome.models) == set(outcome.coverage) == {"openvino"}
    assert "ONNX backend does not support" in outcome.skipped["onnxruntime"]
    executed = open_model(outcome.models["openvino"], "openvino", "f32").executed()
    assert executed["f32 with nf4 weights"] >= 3
    alone = replace(made, models={"onnxruntime": made.models["onnxruntime"]})
    with pytest.raises(CapabilityError, match=r"ONNX backend does not support.*Take another precision"):
        compress_weights.Config(precision="nf4", group_size=32).apply(alone)


@pytest.mark.slow
def test_a_missed_budget_is_an_error(bench: Make) -> None:
    with pytest.raises(CompressionError, match="tried: int8_asym"):
        compress_weights.Config().apply(bench(("openvino",), max_drop=-1.0))
