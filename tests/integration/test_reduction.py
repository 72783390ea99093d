"""A compression with passes on the torch model: killed at any moment it ends with the same files."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

import fmdist
from benchmarks.sparsity import train_on, zeros_in_onnx, zeros_in_openvino, zeros_in_torch
from fmdist import storage
from fmdist.errors import CheckpointError
from fmdist.stages.places import open_trained
from tests.integration.command_line import SMALL, succeed
from tests.integration.command_line import fmdist as command

pytestmark = pytest.mark.slow

RECIPE = {
    **SMALL,
    "compress": {
        "passes": [
            {"kind": "prune_channels", "ratio": 0.5, "rounds": 2, "finetune": {"epochs": 2, "distill": {}}},
            {"kind": "low_rank", "energy": 0.95, "finetune": {"epochs": 1}},
            {"kind": "prune_weights", "sparsity": 0.5, "rounds": 2, "finetune": {"epochs": 1}},
            {"kind": "quantize", "ranges": ["mean"], "bias_correction": ["none"]},
        ],
        "max_drop": 0.5,
        "benchmark": {"samples": 10, "batch_size": 8, "torch_compile": False, "memory": False},
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run and its artifact."""
    made = tmp_path_factory.mktemp("reduction")
    (made / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    succeed(made, "train", "recipe.yaml")
    succeed(made, "compress", "runs/small")
    return made


def models(artifact: Path) -> dict[str, str]:
    """Return the hashes of all that runs, and of all weights."""
    files = storage.verify(artifact)["files"]
    kinds = (".xml", ".bin", ".onnx", ".safetensors")
    return {name: entry["sha256"] for name, entry in files.items() if name.endswith(kinds)}


def kill_while_compressing(folder: Path, seed: int, kills: int) -> int:
    """Kill a compression into ``artifacts/<seed>`` at random moments, then let it end; return the kills."""
    moments, killed = random.Random(seed), 0
    words = [sys.executable, "-m", "fmdist", "compress", "runs/small", "-o", f"artifacts/{seed}", "-q"]
    while True:
        process = subprocess.Popen(words, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if killed < kills:
            time.sleep(moments.uniform(2.5, 12.0))
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                killed += 1
                continue
        _, said = process.communicate()
        assert process.returncode == 0, said.decode()
        return killed


@pytest.mark.parametrize("kills", [3, pytest.param(10, marks=pytest.mark.sweep)])
@pytest.mark.timeout(900)
def test_a_killed_compression_ends_with_the_same_files(folder: Path, kills: int) -> None:
    assert kill_while_compressing(folder, seed=kills, kills=kills) > 0
    assert models(folder / f"artifacts/{kills}") == models(folder / "artifacts/small")
    left = {path.name for path in (folder / f"artifacts/{kills}/stages").rglob("*") if path.is_dir()}
    assert not [name for name in left if name.startswith(("round", "finetune"))]


@pytest.mark.parametrize("stage", ["low_rank", "prune_weights"])
def test_a_stage_begun_in_a_new_process_ends_with_the_same_files(folder: Path, stage: str) -> None:
    again = folder / f"artifacts/{stage}"
    shutil.copytree(folder / "artifacts/small", again)
    succeed(folder, "compress", "runs/small", "-o", again, "--from-stage", stage)
    assert models(again) == models(folder / "artifacts/small")


def test_the_smaller_module_is_opened_and_trained_on(folder: Path) -> None:
    manifest = storage.verify(folder / "artifacts/small")
    module = fmdist.open_module(folder / "artifacts/small")
    left = sum(value.numel() for value in module.parameters())
    assert left == manifest["passes"][2]["after"]["torch"]["parameters"] < 0.6 * manifest["parameters"]
    weights = [value for value in module.parameters() if value.ndim >= 2]
    assert 0.45 < sum(float((value == 0).sum()) for value in weights) / sum(map(torch.numel, weights)) < 0.55
    torch.autograd.backward(module(torch.randn(4, 1, 8, 8)).sum())
    assert all(value.grad is not None for value in module.parameters())
    damaged = folder / "artifacts/small/reduced.safetensors"
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    try:
        with pytest.raises(CheckpointError, match=r"reduced\.safetensors"):
            fmdist.open_module(folder / "artifacts/small")
    finally:
        damaged.write_bytes(whole)


def test_what_the_passes_did_is_told(folder: Path) -> None:
    manifest = storage.verify(folder / "artifacts/small")
    kinds = [(record["kind"], record["on"]) for record in manifest["passes"]]
    assert kinds == [
        ("prune_channels", "torch"),
        ("low_rank", "torch"),
        ("prune_weights", "torch"),
        ("quantize", "exported"),
    ]
    variants = {runtime: list(found) for runtime, found in manifest["models"].items()}
    assert variants == {name: ["fp32", "reduced", "int8"] for name in ("openvino", "onnxruntime")}
    assert {row["variant"] for row in manifest["parity"]} == {"fp32", "reduced"}
    for record in manifest["passes"][:3]:
        before, after = record["before"]["torch"], record["after"]["torch"]
        assert after["nonzero"] < before["nonzero"]
        assert record["candidates"] or record["kind"] == "low_rank"
    report = (folder / "artifacts/small/report.html").read_text(encoding="utf-8")
    assert "they make nothing faster" in report
    assert "Prune channels" in report


def test_nothing_of_a_smaller_model_stays_where_it_is_no_longer_asked_for(folder: Path) -> None:
    recipe = {**RECIPE, "name": "again", "compress": {"passes": [], "max_drop": 0.5}}
    (folder / "again.yaml").write_text(yaml.safe_dump(recipe))
    succeed(folder, "train", "again.yaml")
    for passes in (("--prune-channels", "0.5", "--finetune-epochs", "0", "--max-drop", "1"), ()):
        succeed(folder, "compress", "runs/again", *passes, "-o", "artifacts/again")
        assert (folder / "artifacts/again/reduced.safetensors").exists() == bool(passes)
    module = fmdist.open_module(folder / "artifacts/again")
    parameters = storage.verify(folder / "artifacts/again")["parameters"]
    assert sum(value.numel() for value in module.parameters()) == parameters


def test_a_budget_that_the_passes_miss(folder: Path) -> None:
    missed = (
        "--prune-weights",
        "0.99",
        "--finetune-epochs",
        "0",
        "--max-drop",
        "0.01",
        "-o",
        "artifacts/missed",
    )
    done = command(folder, "compress", "runs/small", *missed)
    assert done.code == 1
    assert "the passes on the torch model lose more of the metric than allowed" in done.err
    done = command(folder, "compress", "runs/small", "--prune-channels", "0", "-o", "artifacts/none")
    assert done.code == 2
    assert "passes.0.ratio: out of range, got 0.0" in done.err
    assert not (folder / "artifacts/none").exists()


def test_zeros_stay_through_export_reload_and_training(folder: Path) -> None:
    artifact = folder / "artifacts/small"
    manifest = storage.verify(artifact)
    (done,) = [record for record in manifest["passes"] if record["kind"] == "prune_weights"]
    zeros = done["coverage"]["torch"]["changed_parameters"]
    files = {name: artifact / found["reduced"]["file"] for name, found in manifest["models"].items()}
    assert zeros_in_openvino(files["openvino"])[0] == zeros
    assert zeros_in_onnx(files["onnxruntime"])[0] == zeros
    module = fmdist.open_module(artifact)
    assert zeros_in_torch(module)[0] == zeros
    before = {name: value.clone() for name, value in module.named_parameters()}
    _, data, task = open_trained(folder / "runs/small")
    train_on(module, data, task)
    assert zeros_in_torch(module)[0] == zeros
    for name, value in module.named_parameters():
        assert not torch.equal(value, before[name])
        if value.ndim >= 2:
            assert torch.equal(value == 0, before[name] == 0)
