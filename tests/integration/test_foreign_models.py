"""Models that fmdist didn't train become artifacts that keep the same promises, or are refused."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import fmdist
from fmdist import storage
from fmdist.contracts import Draw
from fmdist.errors import CheckpointError, DataError
from tests.integration.command_line import fmdist as run_fmdist
from tests.integration.command_line import succeed
from tests.integration.foreign_parts import Foreign, Net, write_all

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Foreign:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # exporters warn of their own parts
        return write_all(tmp_path_factory.mktemp("foreign"))


def compressed(foreign: Foreign, output: Path, *words: str) -> dict[str, Any]:
    """Return the manifest that ``fmdist compress`` leaves for these words."""
    succeed(foreign.folder, "compress", *words, "-o", output)
    manifest: dict[str, Any] = storage.read_json(output / storage.MANIFEST)
    return manifest


def check_scores(foreign: Foreign, manifest: dict[str, Any], output: Path, accuracy: float) -> None:
    """Every row is near the original, whose row is exact; the verbs give the recorded scores and answers."""
    rows = manifest["results"]
    assert rows[0]["value"] == pytest.approx(accuracy, abs=1e-6)
    assert (rows[0]["drop"], rows[0]["speedup"]) == (0, 1)
    for row in rows[1:]:
        assert (
            row["drop"] == 0
            if row["variant"] == "fp32" and row["precision"] == "f32"
            else row["drop"] <= 0.05
        )
        assert row["latency_ms"]["median"] > 0
    assert {row["variant"] for row in rows[1:]} == {"fp32", "int8"}
    assert manifest["validation"]["baseline"]["accuracy"] < 0.2
    for runtime in manifest["models"]:
        done = succeed(foreign.folder, "evaluate", output, "--runtime", runtime, "--json").json
        (row,) = [
            row
            for row in rows
            if (row["runtime"], row["variant"], row["precision"]) == (runtime, "int8", "default")
        ]
        assert done["metrics"]["accuracy"] == pytest.approx(row["value"])
    assert succeed(foreign.folder, "report", output).code == 0


def test_onnx_with_a_fixed_batch_runs_in_both_runtimes(foreign: Foreign, tmp_path: Path) -> None:
    manifest = compressed(foreign, tmp_path / "a", "fixed.onnx", "--data", "data.yaml")
    check_scores(foreign, manifest, tmp_path / "a", foreign.accuracy)
    first = manifest["results"][0]
    assert (first["runtime"], first["variant"]) == ("onnxruntime", "original")
    assert not any(row["runtime"] == "torch" for row in manifest["results"])
    assert manifest["models"].keys() == {"openvino", "onnxruntime"}
    assert manifest["imported"]["batch"] == 1
    nodes = manifest["imported"]["nodes"]
    assert all(0 < counts["after"] <= counts["before"] for counts in nodes.values())
    assert manifest["signature"]["inputs"] == [
        {"name": "image", "shape": [None, 1, 8, 8], "dtype": "float32"}
    ]
    assert "The original in ONNX Runtime" in (text := (tmp_path / "a/report.html").read_text()) or (
        "the original in ONNX Runtime" in text
    )
    with pytest.raises(CheckpointError, match="no torch module in it"):
        fmdist.open_module(tmp_path / "a")
    # The same command again has nothing to do.
    before = (tmp_path / "a/manifest.json").stat().st_mtime_ns
    assert compressed(foreign, tmp_path / "a", "fixed.onnx", "--data", "data.yaml") == manifest
    assert (tmp_path / "a/manifest.json").stat().st_mtime_ns == before


def test_openvino_ir_with_a_fixed_batch_runs_in_openvino(foreign: Foreign, tmp_path: Path) -> None:
    manifest = compressed(foreign, tmp_path / "a", "fixed.xml", "--data", "data.yaml")
    first = manifest["results"][0]
    assert (first["runtime"], first["variant"], first["precision"]) == ("openvino", "original", "f32")
    assert manifest["models"].keys() == {"openvino"}
    # save_model rounds weights to float16, which is the original's business; fp32 holds them in float32.
    assert first["size_ratio"] < 0.8
    check_scores(foreign, manifest, tmp_path / "a", first["value"])
    assert first["value"] == pytest.approx(foreign.accuracy, abs=0.01)


def test_a_program_is_exported_like_a_module(foreign: Foreign, tmp_path: Path) -> None:
    words = ("free.pt2", "--data", "data.yaml", "--trust")
    manifest = compressed(foreign, tmp_path / "a", *words)
    check_scores(foreign, manifest, tmp_path / "a", foreign.accuracy)
    assert manifest["results"][0]["runtime"] == "torch"
    assert manifest["benchmark"]["original"] == "program"
    with pytest.raises(CheckpointError, match="no recipe builds"):
        fmdist.open_module(tmp_path / "a")


def test_safetensors_fill_the_recipes_model(foreign: Foreign, tmp_path: Path) -> None:
    manifest = compressed(foreign, tmp_path / "a", "mlp.safetensors", "--data", "model.yaml")
    check_scores(foreign, manifest, tmp_path / "a", foreign.mlp_accuracy)
    assert manifest["results"][0]["runtime"] == "torch"
    assert manifest["benchmark"]["original"] == "eager"
    test = foreign.splits.test.__getitems__(Draw(0, np.arange(len(foreign.splits.test))))
    with torch.no_grad():
        answers = fmdist.open_module(tmp_path / "a")(test["image"]).argmax(1)
    assert float((answers == test["target"]).double().mean()) == pytest.approx(foreign.mlp_accuracy)


def test_a_module_on_arrays(foreign: Foreign, tmp_path: Path) -> None:
    parts: dict[str, Any] = {}
    for name in ("train", "validation", "test"):
        split = getattr(foreign.splits, name)
        batch = split.__getitems__(Draw(0, np.arange(len(split))))
        parts[name] = (batch["image"].numpy(), batch["target"].numpy())
    data = fmdist.Arrays(**parts)
    artifact = fmdist.compress(
        foreign.net,
        data,
        passes=[{"quantize": {"ranges": ["mean"], "bias_correction": ["none"]}}],
        max_drop=0.05,
        settings={"benchmark": {"samples": 10, "batch_size": 16}, "runtimes": ["openvino"]},
        output=tmp_path / "a",
    )
    rows = storage.read_json(artifact / "manifest.json")["results"]
    assert rows[0]["value"] == pytest.approx(foreign.accuracy, abs=1e-6)
    assert rows[-1]["variant"] == "int8"
    assert fmdist.evaluate(artifact, data=data)["metrics"]["accuracy"] == pytest.approx(rows[-1]["value"])
    with pytest.raises(DataError, match="keeps no copy of them"):
        fmdist.evaluate(artifact)
    changed = fmdist.Arrays(**{**parts, "test": parts["validation"]})
    with pytest.raises(DataError, match="another test split"):
        fmdist.evaluate(artifact, data=changed)
    np.save(tmp_path / "rows.npy", parts["test"][0][:3])
    answers = fmdist.predict(artifact, [tmp_path / "rows.npy"])
    assert [answer["input"] for answer in answers] == [f"{tmp_path}/rows.npy:{row}" for row in range(3)]
    opened = fmdist.open_module(artifact, into=Net())
    for name, value in foreign.net.state_dict().items():
        assert torch.equal(opened.state_dict()[name], value)
    with pytest.raises(CheckpointError, match="weights don't fit it"):
        fmdist.open_module(artifact, into=nn.Linear(2, 2))


def refused(foreign: Foreign, *words: str | Path) -> str:
    """Return the one message of a command that fails before it writes anything."""
    output = foreign.folder / "refused"
    done = run_fmdist(foreign.folder, "compress", *words, "-o", output)
    assert done.code == 2, done.err
    assert done.err.count("error: ") == 1
    assert "Traceback" not in done.err
    assert not output.exists()
    return done.err


def test_what_does_not_fit_is_refused_before_any_work(foreign: Foreign, tmp_path: Path) -> None:
    data = ("--data", "data.yaml")
    assert "needs data" in refused(foreign, "free.onnx")
    assert "no such file" in refused(foreign, "absent.onnx", *data)
    assert "no such run" in refused(foreign, "runs/absent.v2")
    assert "a run is compressed with its own data" in refused(foreign, ".", *data)
    assert "can run any code" in refused(foreign, "free.pt2", *data)
    assert "prune_channels' changes and trains a torch module" in refused(
        foreign, "free.onnx", *data, "--prune-channels", "0.5"
    )
    assert "low_rank' changes" in refused(foreign, "free.pt2", *data, "--trust", "--low-rank", "0.9")
    assert "Guard failed" in refused(foreign, "fixed.pt2", *data, "--trust")
    wide = tmp_path / "wide.yaml"
    wide.write_text("data: {kind: digits, size: 16}\ntask: {kind: classification}\n")
    said = refused(foreign, "free.onnx", "--data", wide)
    assert "input 'pixels'" in said
    assert "got 'float32 (any, 1, 8, 8)'; allowed: float32 (any, 1, 16, 16)" in said
    generative = tmp_path / "vae.yaml"
    generative.write_text("data: {kind: digits}\ntask: {kind: variational}\n")
    assert "needs more of a model than its outputs" in refused(foreign, "free.xml", "--data", generative)
    runtimes = tmp_path / "runtimes.yaml"
    runtimes.write_text(
        "data: {kind: digits}\ntask: {kind: classification}\ncompress: {runtimes: [onnxruntime]}\n"
    )
    assert "nothing turns an OpenVINO IR into ONNX" in refused(foreign, "free.xml", "--data", runtimes)
    assert "required key is missing" in refused(foreign, "mlp.safetensors", *data)
    other = tmp_path / "other.yaml"
    other.write_text("data: {kind: digits}\ntask: {kind: classification}\nmodel: {kind: mlp, hidden: [16]}\n")
    said = refused(foreign, "mlp.safetensors", "--data", other)
    assert "(32, 64), not (16, 64)" in said


@pytest.mark.parametrize("name", ["free.onnx", "free.xml", "free.bin", "free.pt2", "mlp.safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.98])
def test_truncated_files_are_one_clear_error(
    foreign: Foreign, tmp_path: Path, name: str, kept: float
) -> None:
    for file in foreign.folder.glob(f"{Path(name).stem}.*"):
        shutil.copy(file, tmp_path)
    file = tmp_path / name
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    model = file.with_suffix(".xml") if name == "free.bin" else file
    recipe = "model.yaml" if name.endswith("safetensors") else "data.yaml"
    assert "can't be read as" in refused(foreign, model, "--data", recipe, "--trust")


def test_pickles_are_never_read(foreign: Foreign, tmp_path: Path) -> None:
    class Harm:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "harmed"),)

    for suffix in (".pt", ".pth", ".bin", ".ckpt"):
        torch.save(Harm(), tmp_path / f"model{suffix}")
        assert "is a pickle" in refused(
            foreign, tmp_path / f"model{suffix}", "--data", "data.yaml", "--trust"
        )
    assert not (tmp_path / "harmed").exists()


def test_data_outside_of_the_models_folder_is_never_opened(foreign: Foreign, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"\0" * 10**5)
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "link").symlink_to(tmp_path / "secret")
    for location in ("../secret", str(tmp_path / "secret"), "link"):
        model = onnx.load(foreign.folder / "free.onnx")
        stored = model.graph.initializer[0]
        stored.ClearField("raw_data")
        stored.data_location = onnx.TensorProto.EXTERNAL
        stored.external_data.add(key="location", value=location)
        (inner / "model.onnx").write_bytes(model.SerializeToString())
        said = refused(foreign, inner / "model.onnx", "--data", "data.yaml")
        assert "outside of the model's folder, and such a file is never opened" in said
        assert location in said


def test_a_model_no_better_than_chance_is_told(foreign: Foreign, tmp_path: Path) -> None:
    rolled = onnx.load(foreign.folder / "free.onnx")
    for value in rolled.graph.initializer:
        if value.name.startswith("head"):
            array = onnx.numpy_helper.to_array(value)
            value.CopyFrom(onnx.numpy_helper.from_array(np.roll(array, 1, axis=0), value.name))
    onnx.save(rolled, str(tmp_path / "rolled.onnx"))
    words = ("compress", tmp_path / "rolled.onnx", "--data", "data.yaml", "--max-drop", "1", "-o")
    done = succeed(foreign.folder, *words, tmp_path / "a")
    assert "no better than the trivial predictor" in done.err
