from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from fmdist import stages
from fmdist.cli.main import main
from fmdist.recipe.reader import read, read_text

GOOD = "name: toy\ndata: {kind: digits}\nmodel: {kind: cnn}\ntask: {kind: classification}\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.yaml"
    path.write_text(GOOD)
    return path


def test_validate(capsys: pytest.CaptureFixture[str], recipe: Path) -> None:
    assert main(["validate", str(recipe), "train.lr=1e-3"]) == 0
    assert capsys.readouterr() == (f"{recipe} is valid\n", "")


@pytest.mark.parametrize(
    ("line", "field", "said"),
    [
        ("train: {epoch: 3}", "train.epoch", "unknown key"),
        ("train: {epochs: many}", "train.epochs", "wrong type, got 'many'"),
        ("train: {lr: .nan}", "train.lr", "nan and inf are not allowed"),
        ("train: {lr: .inf}", "train.lr", "nan and inf are not allowed"),
        ("train: {lr: nan}", "train.lr", "wrong type, got 'nan'"),
        ("train: {lr: true}", "train.lr", "wrong type, got True"),
        ("train: {lr: 0}", "train.lr", "out of range"),
        ("name: again", "name", "duplicate key"),
        ("compress: {passes: [{kind: quantise}]}", "compress.passes.0.kind", "Did you mean 'quantize'"),
    ],
)
def test_each_mistake_is_one_message_and_exit_2(
    capsys: pytest.CaptureFixture[str], recipe: Path, line: str, field: str, said: str
) -> None:
    recipe.write_text(f"{GOOD}{line}\n")
    assert main(["validate", str(recipe)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"error: {field} ({recipe}:5): ")
    assert said in err
    assert err.count("\n") == 1


def test_several_mistakes_are_all_listed(capsys: pytest.CaptureFixture[str], recipe: Path) -> None:
    recipe.write_text(GOOD.replace("cnn", "cnm") + "train: {epochs: 0, lr: '1e-3'}\nseeed: 1\n")
    assert main(["validate", str(recipe), "train.batch_size=x"]) == 2
    err = capsys.readouterr().err
    for said in (
        "Did you mean 'cnn'",
        "train.epochs",
        "Remove the quotes",
        "Did you mean 'seed'",
        "(command line)",
    ):
        assert said in err
    assert err.splitlines()[-1] == "5 problems"
    assert main(["validate", str(recipe), "train.batch_size=x", "--json"]) == 2
    assert len(json.loads(capsys.readouterr().out)["error"]["problems"]) == 5


def test_scientific_notation_is_a_number(capsys: pytest.CaptureFixture[str], recipe: Path) -> None:
    recipe.write_text(f"{GOOD}train: {{lr: 1e-3}}\n")
    assert main(["show", str(recipe), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["train"]["lr"] == 0.001


def test_show_resolves_and_reads_back(
    capsys: pytest.CaptureFixture[str], recipe: Path, tmp_path: Path
) -> None:
    child = tmp_path / "child.yaml"
    child.write_text("extends: r.yaml\ntrain: {epochs: 2}\n")
    assert main(["show", str(child), "model.kind=mlp"]) == 0
    shown = read_text(capsys.readouterr().out, "shown").values
    assert shown["train"]["epochs"] == 2
    assert shown["model"]["kind"] == "mlp"
    assert stages.load_recipe(shown).plain == shown


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--model", "mlp", "--task", "regression", "--data", "table"],
        ["--model", "resnet", "--data", "image_folder"],
    ],
)
def test_init_writes_a_valid_recipe_once(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, options: list[str]
) -> None:
    file = tmp_path / "mine.yaml"
    assert main(["init", str(file), *options]) == 0
    assert main(["validate", str(file)]) == 0
    before = file.read_text()
    capsys.readouterr()
    assert main(["init", str(file)]) == 2
    assert "never overwritten" in capsys.readouterr().err
    assert file.read_text() == before
    assert read(file).values["name"] == "mine"


def test_init_refuses_unknown_kinds(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["init", str(tmp_path / "r.yaml"), "--model", "cn"]) == 2
    assert "Did you mean 'cnn'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_schema_fits_the_shipped_recipes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["schema", "-o", str(tmp_path / "schema.json")]) == 0
    assert "yaml-language-server" in capsys.readouterr().out
    schema = json.loads((tmp_path / "schema.json").read_text())
    recipes = sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml"))
    assert recipes
    # Checking the schema itself is what takes long: once is enough.
    validator = jsonschema.validators.validator_for(schema)
    validator.check_schema(schema)
    for path in recipes:
        validator(schema).validate(read(path).values)
    wrong = read_text(GOOD + "train: {epoch: 3}", "r").values
    with pytest.raises(jsonschema.ValidationError, match="'epoch' was unexpected"):
        jsonschema.validate(wrong, schema)


@pytest.mark.slow
def test_no_traceback_reaches_the_terminal(recipe: Path) -> None:
    recipe.write_text(GOOD + "train: {epoch: 3}\n")
    fmdist = str(Path(sys.executable).with_name("fmdist"))
    done = subprocess.run([fmdist, "validate", str(recipe)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "train.epoch" in done.stderr
    assert "Traceback" not in done.stderr
