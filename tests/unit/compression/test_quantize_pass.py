from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fmdist.compression.config import CompressConfig
from fmdist.compression.export import export_onnx, export_openvino
from fmdist.compression.passes import coverage, quantize, trial
from fmdist.compression.passes.base import Workbench
from fmdist.compression.passes.trial import Trial, best_of, run
from fmdist.compression.pipeline import _workbench
from fmdist.compression.subject import Subject, batch_of
from fmdist.contracts import ExportSpec
from fmdist.deployment.runtime import open_model
from fmdist.errors import CompressionError

Runtime = Literal["openvino", "onnxruntime"]
ONE = quantize.Config(presets=("performance",), ranges=("mean",), bias_correction=("none",))


@pytest.fixture
def bench(subject: Subject, tmp_path: Path) -> Callable[..., Workbench]:
    """Return a function that exports for one runtime and gives the pass's workbench."""

    def make(runtime: Runtime, spec: ExportSpec | None = None, max_drop: float = 0.05) -> Workbench:
        file = tmp_path / ("float.xml" if runtime == "openvino" else "float.onnx")
        exporter = export_openvino if runtime == "openvino" else export_onnx
        exporter(replace(spec or subject.export, onnx_route="torchscript"), file)
        drafts = tmp_path / "drafts"
        drafts.mkdir()
        config = CompressConfig(calibration_samples=50)
        return _workbench(subject, max_drop, config, {runtime: file}, drafts)

    return make


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_every_layer_becomes_int8_and_runs_so(bench: Callable[..., Workbench], runtime: Runtime) -> None:
    outcome = ONE.apply(bench(runtime))
    covered = outcome.coverage[runtime]
    assert covered["layers"] == covered["changed_layers"] == 5
    assert covered["parameters"] == covered["changed_parameters"] == 8 * 9 * 9 + 16 * 9 * 24 + 160
    assert covered["left"] == []
    session = open_model(outcome.models[runtime], runtime)
    assert session.executed() == {"int8": 5}
    (chosen,) = [row for row in outcome.candidates if row["chosen"]]
    assert chosen["runtime"] == runtime
    assert 0 < chosen["error"] < 0.2
    assert chosen["drop"] <= min(row["drop"] for row in outcome.candidates) + 1e-9


FAST = ["performance, mean ranges, none bias correction", "performance, minmax ranges, none bias correction"]
FINE = ["mixed, mean ranges, none bias correction", "mixed, minmax ranges, none bias correction"]


def test_every_setting_of_a_preset_is_tried_and_recorded(bench: Callable[..., Workbench]) -> None:
    outcome = quantize.Config(bias_correction=("none",)).apply(bench("openvino"))
    assert [row["setting"] for row in outcome.candidates] == FAST
    assert {tuple(row["values"]) for row in outcome.candidates} == {("f32", "default")}
    assert sum(row["chosen"] for row in outcome.candidates) == 1


def test_the_finer_preset_is_tried_where_the_fast_one_loses_too_much(
    bench: Callable[..., Workbench], monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, "performance", to=-1e6)
    outcome = quantize.Config(bias_correction=("none",)).apply(bench("openvino", max_drop=0.01))
    assert [row["setting"] for row in outcome.candidates] == FAST + FINE
    (chosen,) = [row["setting"] for row in outcome.candidates if row["chosen"]]
    assert chosen in FINE


def test_the_finer_preset_is_tried_where_the_runtime_cannot_read_the_fast_one(
    bench: Callable[..., Workbench], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unreadable(bench: Workbench, file: Path, runtime: str, precision: str) -> np.ndarray:
        if "performance" in file.name:
            file.write_text("no model")
        return run(bench, file, runtime, precision)

    monkeypatch.setattr(trial, "run", unreadable)
    outcome = quantize.Config(bias_correction=("none",)).apply(bench("openvino"))
    assert [row["setting"] for row in outcome.candidates] == FINE
    left = [line.getMessage() for line in caplog.records if "left out" in line.getMessage()]
    assert len(left) == 2
    assert all("openvino can't read this model" in line for line in left)


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_missed_budget_lists_what_was_tried(bench: Callable[..., Workbench], runtime: Runtime) -> None:
    strict = replace(bench(runtime), max_drop=-1.0)
    with pytest.raises(CompressionError, match="every setting loses more") as caught:
        ONE.model_copy(update={"accuracy_control": False}).apply(strict)
    tried = (
        "performance, mean ranges, none bias correction"
        if runtime == "openvino"
        else "asymmetric reduced range"
    )
    assert tried in str(caught.value)


def spoil(patch: pytest.MonkeyPatch, name: str, to: float = np.nan) -> None:
    """Let candidates with ``name`` in their file's name answer ``to`` for a class of some samples."""

    def spoilt(bench: Workbench, file: Path, runtime: str, precision: str) -> np.ndarray:
        rows = run(bench, file, runtime, precision)
        if name in file.name:
            rows[::5, 4] = to
        return rows

    patch.setattr(trial, "run", spoilt)


@pytest.mark.parametrize(
    ("runtime", "spoilt", "left"),
    [
        ("openvino", "mean-ranges", FAST[1:]),
        ("onnxruntime", "onnxruntime-asymmetric.", ["symmetric"]),
    ],
)
def test_a_candidate_that_is_not_finite_is_left_out(
    bench: Callable[..., Workbench],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    runtime: Runtime,
    spoilt: str,
    left: list[str],
) -> None:
    spoil(monkeypatch, spoilt)
    outcome = quantize.Config(bias_correction=("none",)).apply(bench(runtime))
    assert [row["setting"] for row in outcome.candidates] == left
    (warning,) = [line.getMessage() for line in caplog.records if "left out" in line.getMessage()]
    assert warning.endswith("is left out: the model's outputs or metrics are not finite")


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_candidates_that_are_all_not_finite_are_an_error(
    bench: Callable[..., Workbench], monkeypatch: pytest.MonkeyPatch, runtime: Runtime
) -> None:
    spoil(monkeypatch, runtime)
    with pytest.raises(CompressionError, match=f"{runtime}: every setting fails, got .*not finite"):
        ONE.apply(bench(runtime))


def test_an_original_that_is_not_finite_is_no_fault_of_a_candidate(bench: Callable[..., Workbench]) -> None:
    made = bench("onnxruntime")
    reference = made.reference.copy()
    reference[3, 4] = np.nan
    with pytest.raises(CompressionError, match="Check the training run"):
        ONE.apply(replace(made, reference=reference))


class NothingToQuantize(nn.Module):
    """Has no weights: the mean of each tenth of the image."""

    def forward(self, image: Tensor) -> Tensor:
        return image.flatten(1)[:, :60].reshape(-1, 10, 6).mean(dim=2)


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_pass_that_changes_nothing_fails(
    subject: Subject, bench: Callable[..., Workbench], runtime: Runtime
) -> None:
    spec = replace(subject.export, module=NothingToQuantize())
    with pytest.raises(CompressionError, match="no layer was quantized"):
        ONE.apply(bench(runtime, spec, max_drop=1.0))


class Outlier(nn.Module):
    """The digits CNN behind a layer whose channels differ by five orders of magnitude."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        scale = torch.logspace(0, 5, 8)
        self.spread = nn.Conv2d(1, 8, 1, bias=False)
        self.spread.weight.data = scale.reshape(8, 1, 1, 1).clone()
        self.gather = nn.Conv2d(8, 1, 1, bias=False)
        # Only the smallest channel counts, and 8 bits over the range of all eight lose it.
        self.gather.weight.data = torch.tensor([1.0] + [0.0] * 7).reshape(1, 8, 1, 1)
        self.body = body

    def forward(self, image: Tensor) -> Tensor:
        output: Tensor = self.body(self.gather(self.spread(image)))
        return output


@pytest.mark.slow
def test_accuracy_control_returns_the_worst_layers_to_float(
    subject: Subject, bench: Callable[..., Workbench]
) -> None:
    spec = replace(subject.export, module=Outlier(subject.export.module))
    made = bench("openvino", spec, max_drop=0.02)
    outcome = ONE.apply(made)
    plain, controlled = outcome.candidates
    assert plain["drop"] > 0.02
    assert controlled["setting"] == "accuracy control, performance, mean ranges, full bias correction"
    assert controlled["chosen"]
    assert controlled["drop"] <= 0.02
    left = outcome.coverage["openvino"]["left"]
    assert left
    assert {layer["reason"] for layer in left} == {"returned to float by accuracy control"}


@pytest.mark.slow
def test_accuracy_control_sees_no_sample_twice(subject: Subject, bench: Callable[..., Workbench]) -> None:
    # On data that it was calibrated on, accuracy control does nothing and says nothing.
    made = bench("openvino", replace(subject.export, module=Outlier(subject.export.module)), max_drop=0.02)
    seen = hashes(made.calibration["image"]), hashes(made.validation["image"])
    splits = subject.splits
    parts = (splits.train.plain(), splits.validation)
    whole = [hashes(batch_of(part, np.arange(len(part)))["image"]) for part in parts]
    assert seen[0] < whole[0]
    assert seen[1] == whole[1]
    assert not whole[0] & whole[1]
    outcome = ONE.apply(made)
    rows = made.reference.argmax(axis=1)
    controlled = run(made, outcome.models["openvino"], "openvino", "f32").argmax(axis=1)
    target = splits.validation.targets
    assert (rows == target).mean() - (controlled == target).mean() <= 0.02


def hashes(rows: np.ndarray) -> set[str]:
    """Return the SHA-256 of every sample's bytes."""
    return {hashlib.sha256(np.ascontiguousarray(row).tobytes()).hexdigest() for row in rows}


def test_coverage_names_what_is_left_and_why(subject: Subject, tmp_path: Path) -> None:
    export_openvino(subject.export, tmp_path / "model.xml")
    layers = coverage.openvino_layers(tmp_path / "model.xml")
    record = coverage.summarize(layers, {layers[0].name: "too dear"}, "not covered")
    assert record["changed_layers"] == 0
    assert [layer["reason"] for layer in record["left"]] == ["too dear"] + ["not covered"] * 4
    assert record["left"][0]["shape"] == [8, 1, 3, 3]


def test_equal_metrics_are_decided_by_the_outputs(tmp_path: Path) -> None:
    trials = [
        Trial("openvino", name, tmp_path, {"f32": 0.9}, drop, error, 0.1)
        for name, drop, error in (("a", 0.01, 0.001), ("b", 0.0, 0.03), ("c", 0.0, 0.02))
    ]
    assert best_of(trials).setting == "c"
    assert [trial.row(best_of(trials), "max")["chosen"] for trial in trials] == [False, False, True]


def test_one_sample_decides_nothing_but_the_budget(tmp_path: Path) -> None:
    def tried(drop: float, error: float, within: bool = True) -> Trial:
        return Trial("openvino", f"{drop}", tmp_path, {"f32": 0.9}, drop, error, 0.1, within, sample=0.01)

    assert best_of([tried(0.01, 0.03), tried(0.02, 0.02), tried(0.03, 0.01)]).drop == 0.02
    assert best_of([tried(0.01, 0.03), tried(0.02, 0.02, within=False)]).drop == 0.01
    assert best_of([tried(0.04, 0.03, within=False), tried(0.05, 0.02, within=False)]).drop == 0.05


def test_the_worst_precision_counts(tmp_path: Path) -> None:
    trial = Trial("openvino", "a", tmp_path, {"f32": 0.9, "default": 0.8}, 0.1, 0.0, 0.1)
    assert trial.row(trial, "max")["value"] == 0.8
    assert trial.row(trial, "min")["value"] == 0.9
    assert np.isclose(trial.row(trial, "max")["drop"], 0.1)
