"""`fmdist evaluate`, `predict` and `report` on runs and artifacts."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import fmdist as package
from fmdist import storage
from fmdist.data import digits
from fmdist.tasks import decoding
from fmdist.training import scoring
from tests.integration.command_line import Life, fmdist, stamps, succeed

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("life")]

RUNTIMES = ("openvino", "onnxruntime")
SURE = 12
"""Images that the model is so sure of that quantization can't change the answer."""


def manifest_row(folder: Path, runtime: str, variant: str) -> dict[str, Any]:
    """A result of the manifest at the precision that the runtime chooses (torch: its own)."""
    rows = storage.read_json(folder / "artifacts/life/manifest.json")["results"]
    precision = "f32" if runtime == "torch" else "default"
    (row,) = [
        row
        for row in rows
        if (row["runtime"], row["variant"], row["precision"]) == (runtime, variant, precision)
    ]
    return dict(row)


def test_a_run_is_scored_as_when_it_was_trained(life: Life) -> None:
    again = succeed(life.folder, "evaluate", "runs/life", "--json").json
    assert again == storage.read_json(life.folder / "runs/life/evaluation/test.json")
    assert again["metrics"]["accuracy"] > 0.8 > 0.2 > again["baseline"]["accuracy"]
    low, high = again["interval"]
    assert low < again["metrics"]["accuracy"] < high
    torch = manifest_row(life.folder, "torch", "fp32")["metrics"]
    assert again["metrics"] == pytest.approx(torch, rel=1e-6)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_artifact_is_scored_as_its_manifest_says(life: Life, runtime: str) -> None:
    words = ("evaluate", "artifacts/life", "--runtime", runtime)
    scores = succeed(life.folder, *words, "--json").json
    assert (scores["runtime"], scores["variant"]) == (runtime, "int8")
    recorded = manifest_row(life.folder, runtime, "int8")["metrics"]
    assert scores["metrics"] == pytest.approx(recorded, rel=1e-6)
    title = succeed(life.folder, *words).out.splitlines()[0]
    assert title == f"test split, {scores['size']} samples in {runtime} (int8)"


@pytest.mark.parametrize("target", ["runs/life", "artifacts/life"])
def test_other_splits_are_scored(life: Life, target: str) -> None:
    sizes = storage.read_json(life.folder / "runs/life/data.json")["sizes"]
    scores = succeed(life.folder, "evaluate", target, "--split", "validation", "--json").json
    assert (scores["split"], scores["size"]) == ("validation", sizes["validation"])
    if target == "runs/life":
        best = storage.read_json(life.folder / "runs/life/run.json")["primary"]["value"]
        assert scores["metrics"]["accuracy"] == pytest.approx(best)


@pytest.mark.parametrize("target", ["runs/life", "artifacts/life"])
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["evaluate", "--split", "tests"], "Did you mean 'test'"),
        (["evaluate", "--runtime", "openvin"], "Did you mean 'openvino'"),
        (["predict", "--runtime", "torch", "x.png"], "allowed: openvino, onnxruntime"),
    ],
)
def test_unknown_splits_and_runtimes_are_refused(
    life: Life, target: str, words: list[str], said: str
) -> None:
    done = fmdist(life.folder, words[0], target, *words[1:])
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert done.err.startswith(f"error: {words[1]}: ")
    assert done.err.count("\n") == 1


def write_images(folder: Path, images: Path) -> list[str]:
    """Write test images of the run in ``folder`` as PNG files that are named by torch's answer."""
    with np.load(folder / "runs/life/evaluation/test.npz") as found:
        outputs = found["outputs"]
    first_two = np.sort(outputs, axis=1)[:, -2:]
    rows = np.argsort(first_two[:, 0] - first_two[:, 1], kind="stable")[:SURE]
    images.mkdir()
    names = []
    for row, pixels in zip(rows, digits.Config().build(0).test.raw(rows), strict=True):
        names.append(str(images / f"{outputs[row].argmax()}-{row}.png"))
        Image.fromarray(pixels[0]).save(names[-1])
    return names


@pytest.fixture(scope="module")
def images(life: Life, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_images(life.folder, tmp_path_factory.mktemp("predict") / "images")


@pytest.mark.parametrize(
    "words", [["runs/life"], *(["artifacts/life", "--runtime", name] for name in RUNTIMES)], ids=" ".join
)
def test_images_get_the_answers_of_the_trained_model(life: Life, images: list[str], words: list[str]) -> None:
    done = succeed(life.folder, "predict", words[0], *images, *words[1:], "--json")
    assert list(done.json) == ["predictions"]
    answers = done.json["predictions"]
    assert [answer["input"] for answer in answers] == images
    for answer in answers:
        assert set(answer) == {"input", "label", "probability", "probabilities"}
        assert answer["label"] == Path(answer["input"]).name[0]
        assert list(answer["probabilities"]) == [str(digit) for digit in range(10)]
        assert sum(answer["probabilities"].values()) == pytest.approx(1)
        assert answer["probability"] == max(answer["probabilities"].values())
    assert len({answer["label"] for answer in answers}) > 1
    lines = succeed(life.folder, "predict", words[0], *images, *words[1:]).out.splitlines()
    for line, answer in zip(lines, answers, strict=True):
        assert line.startswith(f"{answer['input']}: {answer['label']}  ({answer['label']} ")


def write_table(folder: Path) -> None:
    """Write a table in which the city and the age decide, and a few rows to answer without targets."""
    random = np.random.default_rng(0)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["age", "city", "old", "rent", "noise"])
        for _ in range(240):
            age, city = random.uniform(0, 100), random.choice(["Bonn", "Kiel"])
            rent = 3 * age + (200 if city == "Bonn" else 0)
            writer.writerow([f"{age:.3f}", city, "yes" if age > 50 else "no", f"{rent:.3f}", 1])
    (folder / "ask.csv").write_text("city,age\nBonn,95\nKiel,4\n")


def table_recipe(folder: Path, name: str, data: str, task: str) -> str:
    (folder / f"{name}.yaml").write_text(
        f"name: {name}\ndata: {{kind: table, path: table.csv, {data}}}\n"
        f"model: {{kind: mlp, hidden: [16]}}\ntask: {{kind: {task}}}\n"
        "train: {epochs: 40, lr: 2e-2, threads: 1, trackers: []}\n"
        "compress: {benchmark: {samples: 10, batch_size: 16, torch_compile: false, memory: false}}\n"
    )
    return f"{name}.yaml"


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two runs on one table, with their float artifacts."""
    folder = tmp_path_factory.mktemp("tables")
    write_table(folder)
    succeed(folder, "run", table_recipe(folder, "old", "target: old, drop: [rent, noise]", "classification"))
    values = "target: rent, target_kind: value, drop: [old, noise]"
    succeed(folder, "run", table_recipe(folder, "rent", values, "regression"))
    return folder


@pytest.mark.parametrize("target", ["runs", "artifacts"])
def test_rows_of_a_table_are_classified(tables: Path, target: str) -> None:
    done = succeed(tables, "predict", f"{target}/old", "ask.csv", "--json")
    answers = done.json["predictions"]
    assert [(answer["input"], answer["label"]) for answer in answers] == [
        ("ask.csv:1", "yes"),
        ("ask.csv:2", "no"),
    ]
    assert all(answer["probability"] > 0.9 for answer in answers)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_rows_of_a_table_get_values(tables: Path, runtime: str) -> None:
    run = succeed(tables, "predict", "runs/rent", "ask.csv", "--json").json["predictions"]
    words = ("predict", "artifacts/rent", "ask.csv", "--runtime", runtime)
    artifact = succeed(tables, *words, "--json").json["predictions"]
    assert [answer["input"] for answer in artifact] == ["ask.csv:1", "ask.csv:2"]
    for ours, theirs, rent in zip(artifact, run, (485, 12), strict=True):
        assert set(ours) == {"input", "values"}
        # OpenVINO's own choice of precision may be bfloat16
        assert ours["values"]["rent"] == pytest.approx(theirs["values"]["rent"], rel=0.02, abs=4)
        assert theirs["values"]["rent"] == pytest.approx(rent, abs=40)
    assert succeed(tables, *words).out.startswith("ask.csv:1: rent = ")


def test_a_report_can_be_written_again(lived: Path) -> None:
    for target in ("runs/life", "artifacts/life"):
        report = lived / target / "report.html"
        page = report.read_text()
        report.unlink()
        assert succeed(lived, "report", target).out == f"{target}/report.html\n"
        assert report.read_text() == page


WITHOUT = """
import json, sys

# An editable installation would still find what the copy lacks.
editable = [one for one in sys.meta_path if getattr(one, "__module__", "").startswith("__editable__")]
for finder in editable:
    sys.meta_path.remove(finder)
from fmdist.cli.main import main

code = main(json.loads(sys.argv[1]))
loaded = [name for name in ("pydantic", "yaml", "fmdist.models", "fmdist.training") if name in sys.modules]
assert not loaded, loaded
import fmdist
assert fmdist.__file__.startswith(sys.argv[2]), fmdist.__file__
for missing in ("torch", "fmdist.models"):
    try:
        __import__(missing)
    except ImportError:
        continue
    raise AssertionError(missing)
sys.exit(code)
"""


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_an_artifact_answers_where_torch_and_models_do_not_exist(
    life: Life, images: list[str], tmp_path: Path, runtime: str
) -> None:
    """The artifact alone is moved to another place, beside a copy of the package without its models."""
    source = Path(package.__file__).parent
    ignored: Callable[[str, list[str]], set[str]] = shutil.ignore_patterns("models", "__pycache__")
    shutil.copytree(source, tmp_path / "site" / "fmdist", ignore=ignored)
    (tmp_path / "site" / "torch.py").write_text("raise ImportError('there is no torch here')\n")
    (tmp_path / "code.py").write_text(WITHOUT)
    shutil.copytree(life.folder / "artifacts/life", tmp_path / "moved")
    words = ["predict", "moved", *images, "--runtime", runtime, "--json"]
    done = subprocess.run(
        [sys.executable, "code.py", json.dumps(words), str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    here = succeed(life.folder, "predict", "artifacts/life", *images, "--runtime", runtime, "--json").json
    assert json.loads(done.stdout) == here


def test_predicting_and_scoring_write_nothing(lived: Path, images: list[str]) -> None:
    before = stamps(lived, "**/*")
    for target in ("runs/life", "artifacts/life"):
        succeed(lived, "predict", target, images[0])
        succeed(lived, "evaluate", target)
    assert stamps(lived, "**/*") == before


def test_the_worst_examples_of_labels_are_ranked_by_probability() -> None:
    # The sure and right first row is far from its targets in logits, the second is wrong.
    outputs = np.array([[20.0, -20.0], [-1.0, 1.0], [2.0, -2.0]], np.float32)
    targets = np.array([[1, 0], [1, 0], [1, 0]], np.float32)
    for rule, expected in (({"rule": "labels"}, [1, 2, 0]), ({"rule": "value"}, [0, 1, 2])):
        error_N = decoding.errors(rule, outputs, targets)
        assert error_N is not None
        assert scoring._example_rows(error_N).tolist() == expected
