from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fmdist import storage
from fmdist.data.preprocess import ImagePreprocess
from fmdist.deployment import artifact
from fmdist.errors import CheckpointError, DataError, UsageError

PREPROCESS = ImagePreprocess(shape=(1, 2, 2), mode="L", mean=(0.5,), std=(0.5,))


def write_model(file: Path) -> None:
    """Write a model that returns the first and the last pixel as the logits of two classes."""
    weight = np.zeros((4, 2), np.float32)
    weight[0, 0] = weight[3, 1] = 1.0
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", ["image"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["output"]),
        ],
        "pixels",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, 2, 2])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor("weight", TensorProto.FLOAT, [4, 2], weight.ravel().tolist())],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(file))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sealed artifact; OpenVINO reads ONNX too, so one file serves both runtimes."""
    write_model(tmp_path / "model.onnx")
    described = {"fp32": {"file": "model.onnx", "files": ["model.onnx"]}}
    storage.seal(
        tmp_path,
        {
            "format": 4,
            "kind": "artifact",
            "signature": {
                "inputs": [{"name": "image", "shape": [None, 1, 2, 2], "dtype": "float32"}],
                "outputs": [{"name": "output", "shape": [None, 2], "dtype": "float32"}],
            },
            "preprocessing": PREPROCESS.to_json(),
            "decoding": {"rule": "class", "inputs": ["image"], "names": ["dark", "light"]},
            "models": {"openvino": described, "onnxruntime": described},
        },
    )
    return tmp_path


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("precision", ["f32", "default"])
def test_predict_preprocesses_runs_and_decodes(folder: Path, runtime: str, precision: str) -> None:
    loaded = artifact.load(folder, runtime, precision=precision, threads=1)
    raw = np.array([[[[255, 0], [0, 0]]], [[[0, 0], [0, 255]]]], np.uint8)
    assert [answer["label"] for answer in loaded.predict(raw)] == ["dark", "light"]
    assert loaded.predict(raw)[0]["probability"] == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-2)
    assert loaded.predict(raw[:0]) == []


def test_outputs_come_in_order_whatever_the_batch(folder: Path) -> None:
    inputs = np.random.default_rng(0).normal(size=(7, 1, 2, 2)).astype(np.float32)
    loaded = artifact.load(folder, "onnxruntime")
    outputs = loaded.outputs(inputs)
    assert outputs.dtype == np.float32
    np.testing.assert_allclose(outputs, inputs.reshape(7, 4)[:, [0, 3]], rtol=1e-6)
    np.testing.assert_array_equal(loaded.outputs({"image": inputs}), outputs)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (np.zeros((2, 1, 2, 3), np.float32), r"wrong shape .*float32 \(2, 1, 2, 3\).*\(any, 1, 2, 2\)"),
        (np.zeros((2, 1, 2, 2), np.float64), "wrong shape or type.*float64"),
        (np.zeros((0, 1, 2, 2), np.float32), "at least one sample"),
        ({"picture": np.zeros((2, 1, 2, 2), np.float32)}, "not the model's inputs.*picture.*image"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(folder: Path, inputs: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        artifact.load(folder, "onnxruntime").outputs(inputs)


def flip(folder: Path) -> None:
    content = bytearray((folder / "model.onnx").read_bytes())
    content[40] ^= 1
    (folder / "model.onnx").write_bytes(content)


def truncate(folder: Path) -> None:
    (folder / "model.onnx").write_bytes((folder / "model.onnx").read_bytes()[:-1])


def remove(folder: Path) -> None:
    (folder / "model.onnx").unlink()


@pytest.mark.parametrize("damage", [flip, truncate, remove])
def test_damage_is_named(folder: Path, damage: Callable[[Path], None]) -> None:
    damage(folder)
    with pytest.raises(CheckpointError, match=r"model\.onnx"):
        artifact.load(folder)


def test_other_folders_are_refused(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(CheckpointError, match="no finished artifact"):
        artifact.load(tmp_path / "nowhere")
    manifest = storage.read_json(folder / "manifest.json")
    storage.write_json(folder / "manifest.json", {**manifest, "format": 1})
    with pytest.raises(CheckpointError, match=r"format.*got 1; allowed: 4"):
        artifact.load(folder)
    storage.write_json(folder / "manifest.json", {**manifest, "kind": "checkpoint"})
    with pytest.raises(CheckpointError, match="isn't an artifact's"):
        artifact.load(folder)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"runtime": "openvno"}, "did you mean 'openvino'|Did you mean 'openvino'"),
        ({"variant": "int8"}, "no such model.*openvino int8.*onnxruntime fp32"),
        ({"precision": "bf16"}, "precision.*f32, default"),
    ],
)
def test_choices_that_do_not_exist_list_those_that_do(
    folder: Path, choice: dict[str, str], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        artifact.load(
            folder,
            choice.get("runtime", "openvino"),
            choice.get("variant"),
            choice.get("precision", "default"),
        )


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_file_that_the_runtime_can_not_read_is_named(tmp_path: Path, runtime: str) -> None:
    from fmdist.deployment.runtime import open_model

    (tmp_path / "model.onnx").write_text("no model")
    with pytest.raises(CheckpointError, match=f"{runtime} can't read this model"):
        open_model(tmp_path / "model.onnx", runtime)


@pytest.mark.parametrize(("runtime", "absent"), [("openvino", "onnxruntime"), ("onnxruntime", "openvino")])
def test_one_runtime_is_enough_and_torch_and_models_are_not_needed(
    folder: Path, runtime: str, absent: str
) -> None:
    code = f"""
import json, sys
from pathlib import Path
for name in ("torch", "fmdist.models", "fmdist.training", "openvino_telemetry", {absent!r}):
    sys.modules[name] = None
import numpy as np
from fmdist.deployment import artifact
loaded = artifact.load(Path({str(folder)!r}), {runtime!r})
print(json.dumps(loaded.predict(np.zeros((1, 1, 2, 2), np.uint8))))
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout)[0]["probabilities"] == {"dark": 0.5, "light": 0.5}


def changed(folder: Path, described: dict[str, Any]) -> Path:
    """Return the artifact whose only model is described so by whoever wrote the manifest."""
    manifest = storage.read_json(folder / "manifest.json")
    manifest["models"] = {"onnxruntime": {"fp32": described}}
    manifest[storage.OWN_HASH] = storage._own_hash(manifest)
    storage.write_json(folder / "manifest.json", manifest)
    return folder


@pytest.mark.parametrize("name", ["/tmp/other.onnx", "../other.onnx", "unlisted.onnx"])
def test_only_files_of_the_artifact_are_opened(folder: Path, name: str) -> None:
    described = {"file": name, "files": ["model.onnx"]}
    with pytest.raises(CheckpointError, match="isn't among the files with a SHA-256"):
        artifact.load(changed(folder, described), "onnxruntime")
