"""What a user can get wrong, as typed: exit code 2, one clear message, nothing half-written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from fmdist import component, storage
from tests.contract.data_samples import write_idx, write_mnist
from tests.integration.command_line import Done, Life, fmdist, stamps, succeed

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("life")]

TABLE = """\
name: bad
data: {kind: table, path: table.csv, target: y}
model: {kind: mlp, hidden: [4]}
task: {kind: classification}
train: {epochs: 1, threads: 1, trackers: []}
"""


@pytest.fixture(autouse=True)
def only_the_plugins_of_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(component, "_plugin_folders", [])


def refused(done: Done, *said: str, warned: bool = False) -> str:
    """Check that a command ended in one message, after warnings at most, and return it."""
    assert (done.code, done.out) == (2, "")
    lines = done.err.splitlines()
    assert [line for line in lines if line.startswith("error: ")] == lines[-1:]
    if not warned:
        assert len(lines) == 1, lines
    for words in said:
        assert words in lines[-1]
    return lines[-1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recipe and its table of 40 rows."""
    (tmp_path / "bad.yaml").write_text(TABLE)
    write_table(tmp_path, [(number, "ab"[number % 2]) for number in range(40)])
    return tmp_path


def write_table(folder: Path, rows: Sequence[tuple[object, object]]) -> None:
    (folder / "table.csv").write_text("x,y\n" + "".join(f"{x},{y}\n" for x, y in rows))


def no_file(folder: Path) -> None:
    (folder / "table.csv").unlink()


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (no_file, "table.csv: no such file"),
        (lambda folder: write_table(folder, []), "table.csv: the table has no rows"),
        (lambda folder: (folder / "table.csv").write_text(""), "table.csv: the file is empty"),
        (lambda folder: write_table(folder, [(n, "a") for n in range(9)]), "all rows are of one class"),
        (lambda folder: write_table(folder, [(1, "a"), (2, "b")]), "too few rows to be in every split"),
    ],
    ids=["missing", "empty", "nothing", "one class", "too few"],
)
def test_a_table_that_nothing_can_be_learned_from(
    folder: Path, spoil: Callable[[Path], object], said: str
) -> None:
    spoil(folder)
    refused(fmdist(folder, "train", "bad.yaml"), said)
    assert list((folder / "runs").iterdir()) == []


def test_labels_out_of_range(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist", {"train": [0, 1, 12] * 4, "t10k": [0, 1]})
    (tmp_path / "bad.yaml").write_text(
        TABLE.replace("kind: table, path: table.csv, target: y", "kind: mnist, root: mnist")
    )
    done = fmdist(tmp_path, "train", "bad.yaml")
    refused(done, "error: mnist/train-", ":2: 4 label(s) out of range", "got 12", "allowed: 0 to 9")
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_damaged_published_file(tmp_path: Path) -> None:
    write_mnist(tmp_path / "mnist", {"train": [0, 1] * 4, "t10k": [0, 1]})
    write_idx(tmp_path / "mnist" / "train-labels-idx1-ubyte", torch.zeros(3, dtype=torch.uint8).numpy())
    (tmp_path / "bad.yaml").write_text(
        TABLE.replace("kind: table, path: table.csv, target: y", "kind: mnist, root: mnist")
    )
    refused(
        fmdist(tmp_path, "train", "bad.yaml"),
        "mnist/train-labels-idx1-ubyte: the labels don't fit",
        "got (3,)",
    )


IMAGES = (
    "name: bad\ndata: {kind: image_folder, root: images, image_size: 8, mode: L}\n"
    + TABLE[TABLE.index("model") :]
)


def write_images(folder: Path, broken: int) -> None:
    """Write 30 images of two classes, the first ``broken`` of them cut short."""
    (folder / "bad.yaml").write_text(IMAGES)
    for number in range(30):
        file = folder / "images" / ("dark", "light")[number % 2] / f"{number:02d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 5 * number + 100 * (number % 2)).save(file)
        if number < broken:
            file.write_bytes(file.read_bytes()[:40])


def test_unreadable_images_are_quarantined_and_counted(tmp_path: Path) -> None:
    write_images(tmp_path, broken=2)
    words = ("train", "bad.yaml", "data.clean.max_bad_share=0.1")
    done = succeed(tmp_path, *words)
    assert "warning: 2 of 30 records are bad and were left out, see runs/bad/quarantine.jsonl" in done.err
    quarantine = (tmp_path / "runs/bad/quarantine.jsonl").read_text().splitlines()
    assert [json.loads(line)["source"] for line in quarantine] == [
        "images/dark/00.png",
        "images/light/01.png",
    ]
    assert all("not a readable image" in json.loads(line)["reason"] for line in quarantine)
    assert storage.read_json(tmp_path / "runs/bad/data.json")["quarantined"] == 2


def test_too_many_unreadable_images_stop_the_run(tmp_path: Path) -> None:
    write_images(tmp_path, broken=2)
    done = fmdist(tmp_path, "train", "bad.yaml")
    refused(done, "2 of 30 records are bad, see runs/bad/quarantine.jsonl", "images/dark/00.png")
    # Only what tells of the bad records is left, and mending them is enough.
    assert {path.name for path in (tmp_path / "runs/bad").iterdir()} <= {".lock", "quarantine.jsonl"}
    write_images(tmp_path, broken=0)
    succeed(tmp_path, "train", "bad.yaml")
    assert not (tmp_path / "runs/bad/quarantine.jsonl").exists()


@pytest.mark.parametrize("target", ["runs/life", "artifacts/life"])
def test_files_that_can_not_be_answered(life: Life, tmp_path: Path, target: str) -> None:
    Image.new("L", (9, 8)).save(tmp_path / "wide.png")
    (tmp_path / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    Image.new("I;16", (8, 8)).save(tmp_path / "deep.png")
    for name, said in {
        "wide.png": "an image of the wrong shape, got '8 x 9'; allowed: 8 x 8",
        "torn.png": "not a readable image",
        "table.csv": "not a readable image",
        "deep.png": "pixels of more than 8 bits",
        "absent.png": "no such file",
        "": "a directory, not a file",
    }.items():
        done = fmdist(life.folder, "predict", target, tmp_path / name)
        refused(done, f"error: {tmp_path / name if name else tmp_path}: {said}")
    refused(fmdist(life.folder, "predict", target), "INPUT: no input files")


@pytest.mark.parametrize("verb", ["evaluate", "report", "predict", "compress"])
@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("runs/lief", "no such run"),
        ("artifacts/live", "no such run"),
        ("nowhere/at/all", "no such run"),
        ("runs", "run"),
        ("life.yaml", "run"),
    ],
)
def test_folders_that_are_neither_runs_nor_artifacts(life: Life, verb: str, target: str, said: str) -> None:
    before = stamps(life.folder, "**/*")
    done = fmdist(life.folder, verb, target, *(["x.png"] if verb == "predict" else []))
    message = refused(done, f"error: {target}: ", said)
    meant = target == "runs/lief" or (target == "artifacts/live" and verb != "compress")
    assert message.endswith("Did you mean 'life'?") == meant
    assert stamps(life.folder, "**/*") == before


def test_an_artifact_is_no_run(life: Life) -> None:
    refused(fmdist(life.folder, "compress", "artifacts/life"), "not a run")


def checkpoints(lived: Path) -> Iterator[Path]:
    """The run's checkpoints from the best on, as their scores say."""
    found = (lived / "runs/life/checkpoints").iterdir()
    scores = {path: (storage.read_json(path / "state.json")["score"], path.name) for path in found}
    yield from sorted(scores, key=scores.__getitem__, reverse=True)


def test_the_weights_of_another_model(lived: Path) -> None:
    for path in checkpoints(lived):
        manifest = storage.read_json(path / "manifest.json")
        weights = load_file(path / "model.safetensors")
        doubled = {name: torch.cat([value] * 2) if value.ndim else value for name, value in weights.items()}
        save_file(doubled, path / "model.safetensors")
        storage.seal(path, {name: value for name, value in manifest.items() if name != "files"})
    shutil.rmtree(lived / "artifacts")
    for verb in ("evaluate", "compress"):
        refused(
            fmdist(lived, verb, "runs/life"),
            "model.safetensors: the weights don't fit the model of the recipe",
            "size mismatch",
        )
    assert not (lived / "artifacts").exists()


def test_the_checkpoint_of_another_recipe(lived: Path) -> None:
    recipe = lived / "runs/life/recipe.yaml"
    recipe.write_text(recipe.read_text().replace("seed: 0", "seed: 1", 1))
    for verb in ("evaluate", "compress"):
        done = fmdist(lived, verb, "runs/life")
        refused(done, "error: runs/life", "another train")


def test_a_corrupt_checkpoint_is_named_and_the_one_before_it_used(lived: Path) -> None:
    best, *others = checkpoints(lived)
    assert others
    flip(best / "model.safetensors")
    done = succeed(lived, "evaluate", "runs/life", "--json")
    assert (
        f"warning: runs/life/checkpoints/{best.name}/model.safetensors: the content doesn't match" in done.err
    )
    assert done.json != storage.read_json(lived / "runs/life/evaluation/test.json")
    for other in others:
        flip(other / "model.safetensors")
    for verb in ("evaluate", "compress"):
        done = fmdist(lived, verb, "runs/life")
        refused(done, "runs/life: the run has no whole checkpoint", warned=True)
        assert done.err.count("warning: ") == 1 + len(others)


def flip(file: Path) -> None:
    """Flip one bit in the middle of a file."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize("name", ["openvino/model.bin", "onnx/model.onnx"])
def test_a_corrupt_artifact_is_not_used(lived: Path, name: str) -> None:
    flip(lived / "artifacts/life" / name)
    Image.new("L", (8, 8)).save(lived / "zero.png")
    for verb in ("evaluate", "predict"):
        done = fmdist(lived, verb, "artifacts/life", *(["zero.png"] if verb == "predict" else []))
        refused(done, f"artifacts/life/{name}: the content doesn't match its SHA-256")


def test_a_manifest_that_is_none(lived: Path) -> None:
    manifest = lived / "artifacts/life/manifest.json"
    for content, said in {"{": "not valid JSON", "[]": "isn't an artifact's", "{}": "isn't"}.items():
        manifest.write_text(content)
        refused(fmdist(lived, "evaluate", "artifacts/life"), said)


def test_an_output_directory_of_something_else(lived: Path, folder: Path) -> None:
    (lived / "mine").mkdir()
    (lived / "mine/notes.txt").write_text("mine")
    shutil.copy(folder / "table.csv", lived)
    shutil.copy(folder / "bad.yaml", lived)
    before = stamps(lived, "**/*")
    for target, said in {
        "mine": "the output directory is not empty and holds no run",
        "runs/life": "holds another run: the recipe differs in data",
        "artifacts/life": "the output directory is not empty and holds no run",
        "life.yaml": "not a directory",
    }.items():
        refused(fmdist(lived, "train", "bad.yaml", "-o", target), f"error: {target}: ", said)
    for target, said in {
        "mine": "holds something that isn't an artifact",
        "runs/life": "holds something that isn't an artifact",
        "life.yaml": "a file is in the way",
    }.items():
        refused(fmdist(lived, "compress", "runs/life", "-o", target), "error: -o: ", said, f"got '{target}'")
    assert stamps(lived, "**/*") == before


def test_the_artifact_of_other_weights(lived: Path) -> None:
    succeed(lived, "train", "life.yaml", "seed=1", "train.epochs=1", "-o", "runs/other")
    before = stamps(lived / "artifacts", "**/*")
    done = fmdist(lived, "compress", "runs/other", "-o", "artifacts/life")
    refused(done, "holds the artifact of other weights (of 'life')")
    assert stamps(lived / "artifacts", "**/*") == before


def test_data_that_changed_since_training(folder: Path) -> None:
    succeed(folder, "train", "bad.yaml")
    write_table(folder, [(number + 1, "ab"[number % 2]) for number in range(40)])
    for words in (
        ["evaluate", "runs/bad"],
        ["compress", "runs/bad"],
        ["train", "bad.yaml", "train.epochs=2"],
    ):
        done = fmdist(folder, *words)
        refused(done, "runs/bad: the data has changed since training began", "train and validation and test")
    assert not (folder / "artifacts").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max-drop", "nan"], "compress.max_drop: nan and inf are not allowed"),
        (["--max-drop", "inf"], "compress.max_drop: nan and inf are not allowed"),
        (["--max-drop", "-1"], "compress.max_drop: out of range, got -1.0"),
        (["--max-drop", "much"], "'much' is not a valid float"),
        (["--quantize", "int3"], "'int3' is not 'int8'"),
        (["--prune-channels", "1"], "passes.0.ratio: out of range, got 1.0"),
    ],
    ids=" ".join,
)
def test_wishes_that_can_not_be_met(life: Life, words: list[str], said: str) -> None:
    refused(fmdist(life.folder, "compress", "runs/life", *words, "-o", "new"), said)
    assert not (life.folder / "new").exists()


def test_an_extra_that_is_not_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = component._installed
    monkeypatch.setattr(component, "_installed", lambda name: name != "wandb" and installed(name))
    done = fmdist(folder, "train", "bad.yaml", "train.trackers=[wandb]")
    refused(done, "train.trackers", "needs the extra 'wandb'", "pip install 'fmdist[wandb]'")
    write_plugin(folder, "needy", 'REQUIRES = ("no_such_extra",)\nimport no_such_extra\n')
    done = fmdist(folder, "train", "bad.yaml", "--plugins", "mine", "model={kind: needy}")
    refused(done, "kind 'needy' needs the extra 'no_such_extra'", "pip install 'fmdist[no_such_extra]'")
    assert not (folder / "runs").exists()
    succeed(folder, "train", "bad.yaml")


def write_plugin(folder: Path, name: str, head: str = "") -> None:
    """Write ``mine/models/<name>.py``, the MLP under another name, with some lines at its top."""
    (folder / "mine/models").mkdir(parents=True, exist_ok=True)
    lines = (
        '"""Ours."""',
        head,
        "from fmdist.models import mlp",
        "class Config(mlp.Config):",
        '    """Ours."""',
    )
    (folder / f"mine/models/{name}.py").write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("head", "said"),
    [("1 / 0", "ZeroDivisionError: division by zero"), ("def (", "SyntaxError"), ("import nosuch", "nosuch")],
)
@pytest.mark.parametrize(
    "verb", [["validate", "bad.yaml", "model={kind: broken}"], ["init", "--model", "broken"]]
)
def test_a_plugin_that_can_not_be_imported(folder: Path, head: str, said: str, verb: list[str]) -> None:
    write_plugin(folder, "broken", head)
    before = stamps(folder, "**/*")
    done = fmdist(folder, *verb, "--plugins", "mine")
    refused(done, "mine/models/broken.py can't be imported", said, "-v shows the traceback")
    assert stamps(folder, "**/*") == before
    # A kind that nobody asks for stands in nobody's way.
    succeed(folder, "validate", "bad.yaml", "--plugins", "mine")


def test_a_run_with_a_plugin_needs_it_again(folder: Path) -> None:
    write_plugin(folder, "ours")
    succeed(folder, "train", "bad.yaml", "model={kind: ours}", "--plugins", "mine")
    scores = succeed(folder, "evaluate", "runs/bad", "--plugins", "mine", "--json").json
    assert scores == storage.read_json(folder / "runs/bad/evaluation/test.json")
    component._plugin_folders.clear()
    for verb in ("evaluate", "compress"):
        done = fmdist(folder, verb, "runs/bad")
        refused(done, "model.kind", "unknown kind, got 'ours'", "--plugins")
