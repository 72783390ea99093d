"""Transfer learning: what is loaded from where, and what is refused."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import Tensor

from fmdist import storage
from fmdist.contracts import DataSpec, InputSpec, TargetSpec, Task
from fmdist.data.tokenizer import fit_tokenizer
from fmdist.data.tokenizer_config import TokenizerConfig
from fmdist.errors import CheckpointError, FmdistError
from fmdist.models import bert, lstm, mlp, resnet, timm, vit
from fmdist.models.base import ModelConfig
from fmdist.tasks import regression
from fmdist.training.checkpoint import weights_digest
from fmdist.training.transfer import Transfer
from fmdist.training.transfer_config import TransferConfig
from tests.unit.training.transfer_rig import (
    ABC,
    IMAGE,
    NET,
    ROW,
    classes,
    make,
    state,
    transfer,
    values,
    write_run,
)


def no_run(path: Path) -> Task:
    raise AssertionError(path)


@pytest.fixture
def trained() -> dict[str, Tensor]:
    """Weights of a model of `ABC` whose statistics are not the initial ones."""
    task, _ = make(ABC)
    values = state(task)
    values["2.running_mean"] += 3
    return values


@pytest.fixture
def file(trained: dict[str, Tensor], tmp_path: Path) -> Path:
    save_file(trained, tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def as_safetensors(values: dict[str, Tensor], folder: Path) -> Path:
    save_file(values, folder / "net.safetensors")
    return folder / "net.safetensors"


def as_state_dict(values: dict[str, Tensor], folder: Path) -> Path:
    torch.save(values, folder / "net.pth")
    return folder / "net.pth"


def as_training_checkpoint(values: dict[str, Tensor], folder: Path) -> Path:
    torch.save({"state_dict": values, "epoch": 3}, folder / "net.pt")
    return folder / "net.pt"


def as_hugging_face(values: dict[str, Tensor], folder: Path) -> Path:
    save_file(values, folder / "model.safetensors")
    return folder


def as_old_hugging_face(values: dict[str, Tensor], folder: Path) -> Path:
    torch.save(values, folder / "pytorch_model.bin")
    return folder


def as_shards(values: dict[str, Tensor], folder: Path) -> Path:
    files = {name: f"model-{number % 2}.safetensors" for number, name in enumerate(values)}
    for shard in set(files.values()):
        save_file({name: values[name] for name in values if files[name] == shard}, folder / shard)
    storage.write_json(folder / "model.safetensors.index.json", {"weight_map": files})
    return folder


def as_artifact(values: dict[str, Tensor], folder: Path) -> Path:
    save_file(values, folder / "model.safetensors")
    preprocessing = {"kind": "image", "shape": [1, 8, 8], "mode": "L", "resize": None, "mean": [], "std": []}
    facts = {"kind": "artifact", "preprocessing": preprocessing, "target": {"names": ["a", "b", "c"]}}
    storage.seal(folder, facts)
    return folder


@pytest.mark.parametrize(
    "write",
    [
        as_safetensors,
        as_state_dict,
        as_training_checkpoint,
        as_hugging_face,
        as_old_hugging_face,
        as_shards,
        as_artifact,
    ],
)
def test_every_sort_of_source_gives_its_weights(
    write: Callable[[dict[str, Tensor], Path], Path], trained: dict[str, Tensor], tmp_path: Path
) -> None:
    task, made = transfer(write(trained, tmp_path))
    before = state(task)
    record = made.initialize(no_run)
    assert record["loaded"] == len(trained)
    assert record["fresh_head"] == []
    assert all(torch.equal(value, trained[name]) for name, value in state(task).items())
    assert not torch.equal(before["1.weight"], trained["1.weight"])


def test_the_head_starts_fresh_for_other_outputs(
    file: Path, trained: dict[str, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    task, made = transfer(file, classes("a", "b", "c", "d"))
    before = state(task)
    with caplog.at_level(logging.INFO):
        record = made.initialize(no_run)
    assert record["fresh_head"] == ["7.weight", "7.bias"]
    assert "7.weight, 7.bias" in caplog.text
    for name, value in state(task).items():
        assert torch.equal(value, before[name] if name.startswith("7.") else trained[name])


def test_a_run_of_as_many_other_classes_gives_no_head(tmp_path: Path) -> None:
    source, _ = make(classes("x", "y", "z"))
    write_run(tmp_path)
    task, made = transfer(tmp_path)
    before = state(task)
    assert made.initialize(lambda path: source)["fresh_head"] == ["7.weight", "7.bias"]
    assert torch.equal(state(task)["7.weight"], before["7.weight"])
    assert torch.equal(state(task)["1.weight"], state(source)["1.weight"])


@pytest.mark.parametrize(
    ("net", "inputs", "head"),
    [
        (NET, ROW, ["7.weight", "7.bias"]),
        (resnet.Config(), IMAGE, ["head.weight", "head.bias"]),
        (vit.Config(width=8, depth=1), IMAGE, ["head.weight", "head.bias"]),
        (mlp.Config(hidden=(3, 3)), (InputSpec("row", (3,)),), ["5.weight", "5.bias"]),
    ],
    ids=["mlp", "resnet", "vit", "as wide as the outputs"],
)
def test_the_head_is_what_the_outputs_decide(
    net: ModelConfig, inputs: tuple[InputSpec, ...], head: list[str]
) -> None:
    task, rebuild = make(classes("a", "b", "c", inputs=inputs), net)
    assert Transfer(TransferConfig(lr_decay=0.5), task, rebuild, 0).head == head


def test_all_that_does_not_fit_is_named(trained: dict[str, Tensor], tmp_path: Path) -> None:
    del trained["4.bias"]
    trained["4.weight"] = torch.zeros(6, 9)
    trained["extra.weight"] = torch.zeros(1)
    task, made = transfer(as_safetensors(trained, tmp_path))
    before = weights_digest(task.roles()["model"])
    with pytest.raises(CheckpointError) as caught:
        made.initialize(no_run)
    for part in (
        "of another shape: 4.weight (6 x 9 there, 6 x 8 here)",
        "missing there: 4.bias",
        "unexpected: extra.weight",
        "transfer.skip",
    ):
        assert part in str(caught.value)
    assert weights_digest(task.roles()["model"]) == before, "nothing is loaded by half"


def test_patterns_cover_what_does_not_fit(trained: dict[str, Tensor], tmp_path: Path) -> None:
    del trained["4.bias"]
    trained["extra.weight"] = torch.zeros(1)
    task, made = transfer(as_safetensors(trained, tmp_path), skip=["4.*"], ignore=["extra*"])
    before = state(task)
    record = made.initialize(no_run)
    assert record["skipped"] == ["4.weight", "4.bias"]
    assert record["ignored"] == ["extra.weight"]
    assert torch.equal(state(task)["4.weight"], before["4.weight"])


def test_names_are_rewritten(trained: dict[str, Tensor], tmp_path: Path) -> None:
    theirs = {
        f"module.{name}".replace("module.1.", "module.first."): value for name, value in trained.items()
    }
    source = as_safetensors(theirs, tmp_path)
    task, made = transfer(source, rename={r"^module\.": "", r"^first\.": "1."})
    made.initialize(no_run)
    assert torch.equal(state(task)["1.weight"], trained["1.weight"])
    with pytest.raises(CheckpointError, match=r"Did you mean transfer.rename: \{'\^module\\\\?\.': ''\}\?"):
        transfer(source, skip=["1.*"], ignore=["module.first*"])[1].initialize(no_run)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (
            {"skip": ["8.*"]},
            r"transfer\.skip: the pattern matches no tensor.*got '8\.\*'; allowed: 1\.weight",
        ),
        ({"ignore": ["head"]}, r"transfer\.ignore: the pattern matches no tensor of init_from"),
        ({"rename": {"^net": ""}}, r"transfer\.rename: the expression matches no tensor of init_from"),
        ({"rename": {r"^\d": "1"}}, r"several tensors of init_from would be called 1\.bias, 1\.num"),
        ({"skip": ["*"]}, r"no tensor would be loaded"),
        ({"role": "modle"}, r"transfer\.role: no such module.*Did you mean 'model'"),
    ],
)
def test_wrong_wishes_are_refused(file: Path, fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(FmdistError, match=problem):
        transfer(file, **fields)[1].initialize(no_run)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"rename": {"a": "b"}, "lr_decay": 0.5},
        {"init_from": "x", "rename": {"(": ""}},
        {"init_from": "x", "rename": {"a": r"\1"}},
        {"freeze": ["*"], "lora": {"targets": ["*"]}},
        {"lora": {"targets": []}},
        {"lr_decay": 1.5},
    ],
)
def test_sections_that_make_no_sense_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TransferConfig.model_validate_json(json.dumps(fields))


def write_pickle(folder: Path) -> Path:
    torch.save({"weight": torch.zeros(1), "path": Path("x")}, folder / "net.pt")
    return folder / "net.pt"


def write_numbers(folder: Path) -> Path:
    torch.save({"weight": 1.0}, folder / "net.pt")
    return folder / "net.pt"


def write_half(folder: Path) -> Path:
    save_file({"weight": torch.zeros(100)}, folder / "net.safetensors")
    whole = (folder / "net.safetensors").read_bytes()
    (folder / "net.safetensors").write_bytes(whole[:200])
    return folder / "net.safetensors"


def write_outside(folder: Path) -> Path:
    index = {"weight_map": {"weight": "../net.safetensors"}}
    storage.write_json(folder / "model.safetensors.index.json", index)
    return folder


def write_text(folder: Path) -> Path:
    (folder / "net.txt").write_text("1")
    return folder / "net.txt"


@pytest.mark.parametrize(
    ("write", "problem"),
    [
        (write_pickle, "Python objects besides tensors; loading those can run code"),
        (write_numbers, "holds no state dict"),
        (write_half, "can't be read"),
        (write_outside, "a shard lies outside its folder"),
        (write_text, r"not a file of weights.*\.safetensors, \.pt"),
        (lambda folder: folder, "holds no weights"),
        (lambda folder: folder / "missing.pt", "no such file or folder"),
    ],
)
def test_what_holds_no_weights_is_refused(
    write: Callable[[Path], Path], problem: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=problem):
        transfer(write(tmp_path))[1].initialize(no_run)


def test_a_damaged_artifact_is_refused(trained: dict[str, Tensor], tmp_path: Path) -> None:
    folder = as_artifact(trained, tmp_path)
    with (folder / "model.safetensors").open("r+b") as weights:
        weights.seek(-1, 2)
        weights.write(b"\xff")
    with pytest.raises(CheckpointError, match="SHA-256"):
        transfer(folder)[1].initialize(no_run)


def words(*texts: str, size: int = 0) -> DataSpec:
    tokenizer = fit_tokenizer(TokenizerConfig(kind="word", min_count=1), texts)
    found = size or len(json.loads(tokenizer)["model"]["vocab"])
    inputs = (InputSpec("text", (None,), "int64", found, 8),)
    return DataSpec(inputs, TargetSpec("class", ("a", "b")), 4, (2, 2), (), {"text": tokenizer})


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        (
            ("one two three",),
            r"'embedding.weight' has 7 entries there and 6 here.*skip: \['embedding.weight'\]",
        ),
        (("one six",), r"the vocabulary of 'text' doesn't match.*holds other tokens"),
    ],
)
def test_another_vocabulary_is_refused(texts: tuple[str, ...], problem: str, tmp_path: Path) -> None:
    net = lstm.Config(embedding=4, hidden=4)
    source, _ = make(words(*texts), net)
    write_run(tmp_path)
    with pytest.raises(CheckpointError, match=problem):
        transfer(tmp_path, words("one two"), net)[1].initialize(lambda path: source)
    task, made = transfer(tmp_path, words("one two"), net, skip=["embedding.weight"])
    before = state(task)
    made.initialize(lambda path: source)
    assert torch.equal(state(task)["embedding.weight"], before["embedding.weight"])
    assert torch.equal(state(task)["head.weight"], state(source)["head.weight"])


def test_the_same_vocabulary_is_loaded(tmp_path: Path) -> None:
    net = lstm.Config(embedding=4, hidden=4)
    source, _ = make(words("one two"), net)
    write_run(tmp_path)
    task, made = transfer(tmp_path, words("one two"), net)
    made.initialize(lambda path: source)
    assert weights_digest(task.roles()["model"]) == weights_digest(source.roles()["model"])


def test_what_follows_from_the_data_stays(tmp_path: Path) -> None:
    source, _ = make(values(100.0), task=regression.Config())
    save_file(state(source), tmp_path / "net.safetensors")
    task, made = transfer(tmp_path / "net.safetensors", values(-3.0), task=regression.Config())
    made.initialize(no_run)
    assert float(state(task)["mean"]) == -3.0
    assert torch.equal(state(task)["model.1.weight"], state(source)["model.1.weight"])


def of_transformers(folder: Path) -> tuple[Path, ModelConfig, InputSpec]:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=9,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    net = bert.Config(hidden=16, layers=2, heads=2, feedforward=32)
    return folder, net, InputSpec("text", (None,), "int64", 30, 8)


def of_torchvision(folder: Path) -> tuple[Path, ModelConfig, InputSpec]:
    import torchvision

    torch.save(torchvision.models.resnet18(num_classes=9).state_dict(), folder / "resnet18.pth")
    return folder / "resnet18.pth", resnet.Config(depth=18), InputSpec("image", (3, 32, 32))


def of_timm(folder: Path) -> tuple[Path, ModelConfig, InputSpec]:
    library = pytest.importorskip("timm")
    torch.save(library.create_model("resnet10t", num_classes=9).state_dict(), folder / "net.pth")
    return folder / "net.pth", timm.Config(name="resnet10t"), InputSpec("image", (3, 32, 32))


@pytest.mark.slow
@pytest.mark.parametrize("write", [of_transformers, of_torchvision, of_timm])
def test_the_libraries_own_files_fit_as_they_are(
    write: Callable[[Path], tuple[Path, ModelConfig, InputSpec]], tmp_path: Path
) -> None:
    source, net, item = write(tmp_path)
    task, made = transfer(source, classes("a", "b", "c", inputs=(item,)), net)
    before = state(task)
    record = made.initialize(no_run)
    assert record["fresh_head"] == made.head != []
    assert record["loaded"] > 30
    moved = {name for name, value in state(task).items() if not torch.equal(value, before[name])}
    assert moved.isdisjoint(made.head)
    assert {name for name in before if name.endswith("weight") and before[name].ndim > 1} - {
        *made.head
    } <= moved
