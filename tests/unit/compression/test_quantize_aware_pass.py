"""Training with fake quantizers: what is refused, what stays, what is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from pydantic import ValidationError
from torch import Tensor, nn

from fmdist.compression.config import CompressConfig
from fmdist.compression.export import export_models
from fmdist.compression.finetune_config import FinetuneConfig
from fmdist.compression.passes import nncf_torch, quantize_aware
from fmdist.compression.passes.base import Outcome, TrainingBench, Workbench
from fmdist.compression.pipeline import _workbench
from fmdist.compression.reducing import training_bench
from fmdist.compression.subject import Subject
from fmdist.deployment.runtime import open_model
from fmdist.errors import CapabilityError, CompressionError
from fmdist.models import mlp
from fmdist.tasks import classification
from tests.unit.compression.benches import Given

ONE = quantize_aware.Config(finetune=FinetuneConfig(epochs=1, lr=1e-3))
TRAIN = {"batch_size": 256, "lr": 1e-3, "threads": 1, "trackers": []}


def benches(subject: Subject, folder: Path, max_drop: float = 0.05) -> tuple[Workbench, TrainingBench]:
    """Return what the pass is given for both runtimes."""
    known = replace(subject, recipe={**subject.recipe, "train": TRAIN})
    files = {"openvino": folder / "float.xml", "onnxruntime": folder / "float.onnx"}
    export_models(known.export, files, folder)
    drafts = folder / "drafts"
    drafts.mkdir()
    config = CompressConfig(calibration_samples=20)
    return _workbench(known, max_drop, config, files, drafts), training_bench(known, known, folder)


def with_module(subject: Subject, module: nn.Module) -> Subject:
    """Return the subject with another model for the same data."""
    task = classification.Config().build(subject.splits.spec, Given(module.eval()))
    return replace(subject, task=task, export=replace(subject.export, module=module))


@pytest.fixture(scope="module")
def done(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, TrainingBench, Path]:
    """The pass on the digits CNN, which has BatchNorm."""
    folder = tmp_path_factory.mktemp("cnn")
    bench, training = benches(subject, folder)
    return ONE.train(bench, training), training, folder


@pytest.mark.slow
def test_every_layer_becomes_int8_and_runs_so(done: tuple[Outcome, TrainingBench, Path]) -> None:
    outcome, _, _ = done
    for runtime in ("openvino", "onnxruntime"):
        covered = outcome.coverage[runtime]
        assert covered["layers"] == covered["changed_layers"] == 5
        assert covered["parameters"] == covered["changed_parameters"] == 8 * 9 * 9 + 16 * 9 * 24 + 160
        executed = open_model(outcome.models[runtime], runtime).executed()
        assert executed["int8"] >= 4
        assert sum(executed.values()) == 5
    assert not outcome.skipped
    assert [row["chosen"] for row in outcome.candidates] == [True, True]
    assert {row["setting"] for row in outcome.candidates} == {"quantization-aware, mixed, 1 epochs"}


@pytest.mark.slow
def test_weights_are_integers_in_the_files(done: tuple[Outcome, TrainingBench, Path]) -> None:
    outcome, _, _ = done
    graph = onnx.load(str(outcome.models["onnxruntime"])).graph
    floats = [value for value in graph.initializer if numpy_helper.to_array(value).dtype == np.float32]
    assert max(len(value.dims) for value in floats) <= 1
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    weights = outcome.models["openvino"].with_suffix(".bin").stat().st_size
    parameters = outcome.coverage["openvino"]["parameters"]
    assert parameters <= weights < 2 * parameters


@pytest.mark.slow
def test_both_runtimes_answer_as_the_trained_model(done: tuple[Outcome, TrainingBench, Path]) -> None:
    outcome, training, _ = done
    module = training.task.served(training.task.roles())
    image = torch.randn(32, 1, 8, 8)
    with torch.no_grad():
        expected = module(image).numpy()
    for runtime in ("openvino", "onnxruntime"):
        found = open_model(outcome.models[runtime], runtime, "f32").run({"image": image.numpy()})
        assert np.sqrt(((found - expected) ** 2).mean()) < 0.05 * np.sqrt((expected**2).mean())


@pytest.mark.slow
def test_the_ranges_and_the_weights_are_trained(
    subject: Subject, done: tuple[Outcome, TrainingBench, Path]
) -> None:
    _, training, _ = done
    trained = training.task.served(training.task.roles())
    before = nncf_torch.with_quantizers(
        subject.export.module, [(torch.randn(1, 1, 8, 8),)], preset="mixed", ignored=[]
    )
    same = dict(before.named_parameters())
    ranges = [name for name, _ in trained.named_parameters() if name.endswith("_storage")]
    assert ranges
    scales = [name for name in ranges if "pre_hooks" in name]
    assert all(not torch.equal(same[name], trained.get_parameter(name)) for name in scales)
    assert not torch.equal(same["net.0.weight"], trained.get_parameter("net.0.weight"))


@pytest.mark.slow
def test_a_perceptron_is_served(subject: Subject, tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = mlp.Config(hidden=(32, 32)).build(subject.splits.spec, 10)
    bench, training = benches(with_module(subject, made), tmp_path, max_drop=1.0)
    outcome = ONE.train(bench, training)
    assert {name: record["changed_layers"] for name, record in outcome.coverage.items()} == {
        "openvino": 3,
        "onnxruntime": 3,
    }


@pytest.mark.slow
def test_zeros_stay_zero_and_ignored_layers_stay_in_float(subject: Subject, tmp_path: Path) -> None:
    known = with_module(subject, training_bench(subject, subject, tmp_path).served)
    first = known.export.module.get_submodule("0")
    head = known.export.module.get_submodule("16")
    with torch.no_grad():
        for layer in (first, head):
            layer.get_parameter("weight").flatten()[::2] = 0
    bench, training = benches(known, tmp_path, max_drop=1.0)
    outcome = ONE.model_copy(update={"ignore": ("16",)}).train(bench, training)
    module = training.task.served(training.task.roles())
    for name, layer in (("net.0.weight", first), ("net.16.weight", head)):
        after = module.get_parameter(name)
        assert torch.equal(after == 0, layer.get_parameter("weight") == 0)
        assert not torch.equal(after, layer.get_parameter("weight"))
    for record in outcome.coverage.values():
        (left,) = record["left"]
        assert left["shape"] == [10, 16]
        assert left["reason"] == "ignored by the recipe"
    graph = onnx.load(str(outcome.models["onnxruntime"])).graph
    kernels = [
        numpy_helper.to_array(value) for value in graph.initializer if list(value.dims) == [8, 1, 3, 3]
    ]
    assert (kernels[0].flatten()[::2] == 0).all()


@pytest.mark.slow
def test_a_missed_budget_says_by_how_much(
    done: tuple[Outcome, TrainingBench, Path], subject: Subject, tmp_path: Path
) -> None:
    bench, training = benches(subject, tmp_path, max_drop=-1.0)
    with pytest.raises(CompressionError, match=r"loses more .* quantization-aware, mixed, 1 epochs"):
        ONE.train(bench, training)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.GRU(8, 10, batch_first=True)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        output: Tensor = self.rows(image_BCHW[:, 0])[0][:, -1]
        return output


class Table(nn.Module):
    """Weights that belong to no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(64, 10))

    def forward(self, image_BCHW: Tensor) -> Tensor:
        return image_BCHW.flatten(1) @ self.table


class OtherwiseInTraining(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 10), nn.Linear(64, 10)

    def forward(self, image_BCHW: Tensor) -> Tensor:
        layer = self.first if self.training else self.second
        output: Tensor = layer(image_BCHW.flatten(1))
        return output


def never(config: FinetuneConfig, name: str) -> None:
    pytest.fail("it trains before it refuses")


@pytest.mark.parametrize(
    ("module", "settings", "said"),
    [
        (Recurrent, {}, "no quantizers for the recurrent layers rows"),
        (Table, {}, "there is no layer that it may quantize"),
        (OtherwiseInTraining, {}, "the model computes otherwise in training: no quantizer acts in .*second"),
        (
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
            {"ignore": ("head",)},
            "got 'head'; allowed: 1",
        ),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), {"ignore": ("*",)}, "no layer that it may"),
    ],
)
def test_what_can_not_be_trained_so_is_refused_before_any_training(
    subject: Subject, tmp_path: Path, module: Any, settings: dict[str, Any], said: str
) -> None:
    bench, training = benches(with_module(subject, module()), tmp_path)
    training.finetune = never
    with pytest.raises(CapabilityError, match=said) as caught:
        quantize_aware.Config(**settings).train(bench, training)
    assert str(caught.value).startswith("compress.passes.quantize_aware")


@pytest.mark.parametrize("other", ["quantize", "compress_weights"])
def test_weights_are_replaced_once(other: str) -> None:
    with pytest.raises(ValidationError, match=f"{other}.* each replace the weights|each replace .*{other}"):
        CompressConfig.model_validate({"passes": ({"kind": other}, {"kind": "quantize_aware"})})


def test_it_stands_after_what_works_on_the_float_model() -> None:
    with pytest.raises(ValidationError, match="prune_weights must stand before quantize_aware"):
        CompressConfig.model_validate({"passes": ({"kind": "quantize_aware"}, {"kind": "prune_weights"})})
