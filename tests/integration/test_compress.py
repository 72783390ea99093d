"""A trained digits CNN becomes an artifact that keeps its promises; a stopped compression goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmdist import storage
from fmdist.compression import exporting, pipeline, verification
from fmdist.compression.config import BenchmarkConfig, CompressConfig
from fmdist.compression.passes import quantize
from fmdist.compression.pipeline import compress
from fmdist.compression.subject import Subject, batch_of, torch_rows
from fmdist.deployment import artifact
from fmdist.errors import CheckpointError, CompressionError, UsageError
from tests.trained import digits_cnn

pytestmark = pytest.mark.slow

FAST = BenchmarkConfig(samples=10, batch_size=16, torch_compile=False, memory=False)
QUICK = CompressConfig(
    passes=(quantize.Config(ranges=("mean",), bias_correction=("none",)),),
    runtimes=("openvino",),
    calibration_samples=50,
    benchmark=FAST,
)


@pytest.fixture(scope="module")
def large() -> Subject:
    return digits_cnn("digits", (32, 64, 144), blocks=2, epochs=6)


@pytest.fixture(scope="module")
def small() -> Subject:
    return digits_cnn("digits", (8, 16), blocks=1, epochs=2)


@pytest.fixture(scope="module")
def made(large: Subject, tmp_path_factory: pytest.TempPathFactory) -> pipeline.Result:
    config = CompressConfig(passes=(quantize.Config(),), benchmark=FAST)
    return compress(large, config, tmp_path_factory.mktemp("artifacts") / "digits")


def row(manifest: dict[str, Any], runtime: str, variant: str, precision: str = "default") -> dict[str, Any]:
    rows: list[dict[str, Any]] = manifest["results"]
    wanted = (runtime, variant, precision)
    (found,) = [row for row in rows if (row["runtime"], row["variant"], row["precision"]) == wanted]
    return found


def test_the_artifact_keeps_its_promises(made: pipeline.Result) -> None:
    manifest = made.manifest
    assert manifest["parameters"] >= 300_000
    original = row(manifest, "torch", "fp32", "f32")
    assert original["value"] > 0.95
    for runtime in ("openvino", "onnxruntime"):
        small = row(manifest, runtime, "int8")
        assert small["size_ratio"] <= 0.30
        assert small["drop"] <= 0.01
        assert set(small["executed"]) == {"int8"}
        assert row(manifest, runtime, "fp32")["size_ratio"] == 1
    assert row(manifest, "openvino", "fp32", "f32")["executed"] == {"f32": 7}
    assert len(manifest["parity"]) == 4
    assert all(0 < parity["relative"] <= 1e-5 for parity in manifest["parity"])
    (done,) = manifest["passes"]
    assert len(done["candidates"]) == 7
    assert sum(candidate["chosen"] for candidate in done["candidates"]) == 2
    assert all(covered["left"] == [] for covered in done["coverage"].values())
    assert done["after"]["openvino"]["bytes"] < done["before"]["openvino"]["bytes"]
    assert [stage["name"] for stage in manifest["stages"]] == [
        "01-export",
        "02-quantize",
        "03-verify",
        "04-benchmark",
    ]


def test_the_layout_is_the_documented_one(made: pipeline.Result, large: Subject) -> None:
    files = {path.relative_to(made.path).as_posix() for path in made.path.rglob("*") if path.is_file()}
    assert files - {".lock"} == {
        "manifest.json",
        "README.md",
        "architecture.json",
        "model.safetensors",
        "openvino/model.xml",
        "openvino/model.bin",
        "openvino/model.fp32.xml",
        "openvino/model.fp32.bin",
        "onnx/model.onnx",
        "onnx/model.int8.onnx",
        "stages/subject.json",
        *(f"stages/{stage['name']}/done.json" for stage in made.manifest["stages"]),
    }
    sizes = [(made.path / f"openvino/model.{end}").stat().st_size for end in ("xml", "bin")]
    assert made.manifest["models"]["openvino"]["int8"]["bytes"] == sum(sizes)
    architecture = storage.read_json(made.path / "architecture.json")
    assert architecture["model"]["kind"] == "cnn"
    assert set(architecture["parameters"]) == set(large.export.module.state_dict())


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_the_loaded_artifact_answers_as_recorded(made: pipeline.Result, large: Subject, runtime: str) -> None:
    test = large.splits.test
    everything = np.arange(len(test))
    loaded = artifact.load(made.path, runtime)
    assert loaded.variant == "int8"
    outputs = loaded.outputs(batch_of(test, everything)["image"])
    accuracy = float((outputs.argmax(axis=1) == test.targets).mean())
    assert accuracy == pytest.approx(row(made.manifest, runtime, "int8")["value"])
    answers = loaded.predict(test.raw(everything))
    assert [answer["label"] for answer in answers] == [str(k) for k in outputs.argmax(axis=1)]
    exact = artifact.load(made.path, runtime, variant="fp32", precision="f32")
    reference = torch_rows(large.task, test)
    difference = np.abs(exact.outputs(batch_of(test, everything)["image"]) - reference).max()
    assert difference <= 1e-5 * np.abs(reference).max()


def test_a_second_call_changes_nothing(
    made: pipeline.Result, large: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (made.path / "manifest.json").stat().st_mtime_ns
    monkeypatch.setattr(verification, "verify", None)
    config = CompressConfig(passes=(quantize.Config(),), benchmark=FAST)
    assert compress(large, config, made.path).manifest == made.manifest
    assert (made.path / "manifest.json").stat().st_mtime_ns == before


def stamps(output: Path) -> dict[str, int]:
    return {path.parent.name: path.stat().st_mtime_ns for path in output.glob("stages/*/done.json")}


def test_a_changed_setting_repeats_what_depends_on_it(small: Subject, tmp_path: Path) -> None:
    output = tmp_path / "artifact"
    config = QUICK.model_copy(update={"max_drop": 0.2})
    compress(small, config, output)
    first = stamps(output)
    (output / "report.html").write_text("old")
    slower = config.model_copy(update={"benchmark": FAST.model_copy(update={"samples": 15})})
    manifest = compress(small, slower, output).manifest
    second = stamps(output)
    assert {name for name in first if first[name] != second[name]} == {"04-benchmark"}
    assert set(manifest["benchmark"]["samples"].values()) == {15}
    assert "report.html" not in manifest["files"]
    # Without the pass the float model takes the place of what runs, and nothing stale remains.
    plain = compress(small, slower.model_copy(update={"passes": ()}), output).manifest
    assert sorted(path.name for path in (output / "openvino").iterdir()) == ["model.bin", "model.xml"]
    assert sorted(stamps(output)) == ["01-export", "02-verify", "03-benchmark"]
    assert plain["models"] == {"openvino": {"fp32": plain["models"]["openvino"]["fp32"]}}
    assert artifact.load(output).variant == "fp32"


def test_a_stage_is_done_again_when_asked_and_the_folder_is_kept_only_if_wanted(
    small: Subject, tmp_path: Path
) -> None:
    output, config = tmp_path / "artifact", QUICK.model_copy(update={"max_drop": 0.2})
    sealed = compress(small, config, output).manifest
    first = stamps(output)
    compress(small, config, output, from_stage="verify")
    second = stamps(output)
    assert {name for name in first if first[name] != second[name]} == {"03-verify", "04-benchmark"}
    with pytest.raises(UsageError, match=r"--from-stage.*Did you mean 'quantize'"):
        compress(small, config, output, from_stage="quantise")
    assert stamps(output) == second
    bare = compress(small, config.model_copy(update={"keep_stages": False}), output).manifest
    assert bare["models"] == sealed["models"]
    assert [path.name for path in (output / "stages").iterdir()] == ["subject.json"]
    assert compress(small, config, output).manifest["models"] == sealed["models"]
    assert len(stamps(output)) == 4


def test_another_version_of_a_package_repeats_every_stage(
    small: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "artifact"
    config = QUICK.model_copy(update={"max_drop": 0.2})
    compress(small, config, output)
    before = stamps(output)
    shutil.copytree(output / "openvino", tmp_path / "exported")

    def export_the_same(spec: object, files: dict[str, Path], folder: Path) -> None:
        for file in files.values():
            for end in (".xml", ".bin"):
                shutil.copy(tmp_path / "exported" / file.with_suffix(end).name, file.with_suffix(end))

    # Exporters name some nodes anew each time; equal files leave the versions as the only difference.
    monkeypatch.setattr(exporting, "export_models", export_the_same)
    for module in (exporting, pipeline):
        monkeypatch.setattr(module, "versions", lambda names: dict.fromkeys(names, "99"))
    compress(small, config, output)
    after = stamps(output)
    assert {name for name in before if after[name] != before[name]} == before.keys()


def test_an_interrupted_compression_goes_on(
    small: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "artifact"
    config = QUICK.model_copy(update={"max_drop": 0.2})

    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(verification, "verify", interrupt)
        with pytest.raises(KeyboardInterrupt):
            compress(small, config, output)
    assert not (output / "manifest.json").exists()
    with pytest.raises(CheckpointError, match="no finished artifact"):
        artifact.load(output)
    before = stamps(output)
    assert sorted(before) == ["01-export", "02-quantize"]
    compress(small, config, output)
    after = stamps(output)
    assert {name: after[name] for name in before} == before
    assert artifact.load(output).variant == "int8"


KILLED = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.integration.test_compress import QUICK, compress, digits_cnn
compress(digits_cnn("digits", (8, 16), 1, 1), QUICK.model_copy(update={{"max_drop": 1.0}}), Path({output!r}))
"""


def test_a_killed_compression_leaves_no_artifact_and_goes_on(tmp_path: Path) -> None:
    output = tmp_path / "artifact"
    code = KILLED.format(root=str(Path(__file__).parents[2]), output=str(output))
    child = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    marker = output / "stages/01-export/done.json"
    while not marker.exists():
        assert child.poll() is None
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (output / "manifest.json").exists()
    before = marker.stat().st_mtime_ns
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert marker.stat().st_mtime_ns == before
    assert artifact.load(output).variant == "int8"
    assert not list(output.glob(".scratch*"))


def test_other_directories_are_refused(small: Subject, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="holds something that isn't an artifact"):
        compress(small, QUICK, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(CheckpointError, match="a file is in the way"):
        compress(small, QUICK, tmp_path / "notes.txt")
    output = tmp_path / "artifact"
    (output / "stages").mkdir(parents=True)
    (output / "stages/subject.json").write_text(json.dumps({"name": "other", "fingerprint": "0"}))
    with pytest.raises(CheckpointError, match=r"artifact of other weights .*'other'"):
        compress(small, QUICK, output)


def test_a_missed_budget_leaves_no_artifact(
    small: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workbench = pipeline._workbench
    monkeypatch.setattr(
        pipeline, "_workbench", lambda *arguments: replace(workbench(*arguments), max_drop=-1.0)
    )
    passes = (quantize.Config(ranges=("mean",), bias_correction=("none",), accuracy_control=False),)
    with pytest.raises(CompressionError, match="mixed, mean ranges, none bias correction"):
        compress(small, QUICK.model_copy(update={"passes": passes}), tmp_path / "artifact")
    assert not (tmp_path / "artifact/manifest.json").exists()
    assert not list((tmp_path / "artifact").glob(".scratch*"))
