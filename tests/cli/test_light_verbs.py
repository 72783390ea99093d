from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fmdist import component
from fmdist.cli import listing
from fmdist.cli.main import VERBS, main

HEAVY = ("torch", "ray", "pydantic", "yaml", "rich", "numpy", "sklearn")
FMDIST = str(Path(sys.executable).with_name("fmdist"))


def _run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(words)
    out, err = capsys.readouterr()
    return code, out, err


def _json(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> Any:
    actual, out, _ = _run(capsys, *words, "--json")
    assert actual == code
    return json.loads(out)


@pytest.mark.parametrize(
    "words", [[], ["--help"], ["train", "--help"], ["list", "models"], ["list", "passes", "--json"]]
)
def test_light_commands_import_nothing_heavy(words: list[str]) -> None:
    script = (
        "import sys\nfrom fmdist.cli.main import main\n"
        f"code = main({words})\n"
        f"loaded = [name for name in {HEAVY} if name in sys.modules]\n"
        "sys.exit(f'imported {loaded}' if loaded else code)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize("verb", [verb.name for verb in VERBS])
def test_every_verb_has_help_and_the_shared_options(capsys: pytest.CaptureFixture[str], verb: str) -> None:
    code, out, err = _run(capsys, verb, "--help")
    assert (code, err) == (0, "")
    for option in ("--json", "--plugins", "--verbose", "--quiet"):
        assert option in out
    assert f"\n  {verb} " in _run(capsys, "--help")[1]


def test_the_groups_of_list_are_those_of_the_components() -> None:
    assert tuple(component.GROUPS) == listing.GROUPS


@pytest.mark.parametrize("group", listing.GROUPS)
def test_list(capsys: pytest.CaptureFixture[str], group: str) -> None:
    code, out, _ = _run(capsys, "list", group)
    listed = _json(capsys, "list", group)
    assert code == 0
    assert [kind["kind"] for kind in listed] == list(component.kinds(group))
    assert [line.split()[0] for line in out.split("\n\n")[0].splitlines()[1:]] == list(component.kinds(group))


def test_list_shows_plugins_and_missing_extras(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(component, "_plugin_folders", [])
    (tmp_path / "models").mkdir()
    source = '"""Ours."""\nREQUIRES = ("no_such_extra",)\n\n\nclass Config: ...\n'
    (tmp_path / "models" / "ours.py").write_text(source)
    code, out, _ = _run(capsys, "list", "models", "--plugins", str(tmp_path))
    assert code == 0
    assert "no_such_extra (missing)" in out
    assert "pip install 'fmdist[no_such_extra]'" in out
    ours = [kind for kind in _json(capsys, "list", "models") if kind["kind"] == "ours"]
    assert ours == [
        {"kind": "ours", "needs": ["no_such_extra"], "missing": ["no_such_extra"], "summary": "Ours."}
    ]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lst"], "Did you mean 'list'"),
        (["list", "modles"], "'modles' is not one of 'models'"),
        (["list"], "Missing argument"),
        (["list", "models", "--jsn"], "Did you mean '--json'"),
        (["validate"], "Missing argument 'RECIPE'"),
        (["list", "models", "--plugins", "nowhere"], "no such plug-in folder"),
        (["runs", "nowhere"], "no such directory"),
        (["validate", "nowhere.yaml"], "no such recipe file"),
    ],
)
def test_a_wrong_command_line_is_one_message_and_exit_2(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = _run(capsys, *words)
    assert (code, out) == (2, "")
    assert said in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    error = _json(capsys, *words, code=2)["error"]
    assert error["exit_code"] == 2
    assert len(error["problems"]) == 1


def _free(patch: pytest.MonkeyPatch, free_bytes: int) -> None:
    usage = SimpleNamespace(total=10**12, used=10**12 - free_bytes, free=free_bytes)
    patch.setattr("shutil.disk_usage", lambda place: usage)


def test_doctor(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _free(monkeypatch, 5 * 10**9)
    code, out, _ = _run(capsys, "doctor", "--runs", str(tmp_path / "runs"))
    assert code == 0, out
    facts = _json(capsys, "doctor", "--runs", str(tmp_path / "runs"))
    assert facts["broken"] == []
    assert facts["disk"]["free_bytes"] == 5 * 10**9
    assert facts["versions"]["torch"] in out
    assert facts["devices"][0]["device"] == "cpu"
    assert facts["disk"]["writable"]
    assert set(facts["extras"]) >= {"vision", "compress", "table"}
    for name, extra in facts["extras"].items():
        assert ((f"pip install 'fmdist[{name}]'") in out) == bool(extra["missing"])


def test_doctor_says_that_the_disk_is_full(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _free(monkeypatch, 10**8)
    facts = _json(capsys, "doctor", "--runs", str(tmp_path / "runs"), code=1)
    assert facts["broken"] == [f"less than 1 GB is free at {tmp_path}"]


def test_doctor_says_what_is_broken(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "a file"
    file.write_text("")
    code, out, _ = _run(capsys, "doctor", "--runs", str(file))
    assert code == 1
    assert "BROKEN" in out
    assert "is not writable" in out


def _record(folder: Path, name: str, changed: Mapping[str, Any] | None = None) -> None:
    changed = changed or {}
    run = {
        "format": 1,
        "name": name,
        "status": "finished",
        "created": "2026-01-01T00:00:00+00:00",
        "updated": "2026-01-01T00:01:00+00:00",
        "seconds": 60.0,
        "epoch": 3,
        "step": 120,
        "primary": {"name": "accuracy", "mode": "max", "value": 0.9},
        "metrics": {"accuracy": 0.9},
    }
    (folder / name).mkdir(parents=True)
    (folder / name / "run.json").write_text(json.dumps({**run, **changed}))
    (folder / name / "recipe.yaml").write_text(
        f"name: {name}\ntrain: {{lr: {changed.get('seconds', 1)}, epochs: 3}}\n"
    )


def test_runs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _record(tmp_path, "one")
    # Interrupted before the first evaluation; tests/faults holds this to what a run writes.
    nothing = {"name": "accuracy", "mode": "max", "value": None}
    stopped = {"status": "interrupted", "epoch": 0, "seconds": 3700.0, "primary": nothing, "metrics": {}}
    _record(tmp_path, "two", stopped)
    code, out, _ = _run(capsys, "runs", str(tmp_path))
    lines = out.splitlines()
    assert code == 0
    assert lines[1].split()[:6] == ["one", "finished", "3", "120", "accuracy", "0.9"]
    assert "1 min 00 s" in lines[1]
    assert lines[2].split()[:5] == ["two", "interrupted", "0", "120", "-"]
    assert "1 h 01 min" in lines[2]
    assert [run["name"] for run in _json(capsys, "runs", str(tmp_path))["runs"]] == ["one", "two"]


@pytest.mark.parametrize("status", ["running", "failed"])
def test_runs_lists_a_run_without_a_position(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, status: str
) -> None:
    _record(tmp_path, "one")
    _record(tmp_path, "two", {"status": status})
    file = tmp_path / "two" / "run.json"
    known = {"format", "name", "status", "created", "updated"}
    file.write_text(
        json.dumps({key: value for key, value in json.loads(file.read_text()).items() if key in known})
    )
    code, out, _ = _run(capsys, "runs", str(tmp_path))
    assert code == 0
    assert out.splitlines()[1].split()[:2] == ["one", "finished"]
    assert out.splitlines()[2].split()[:6] == ["two", status, "-", "-", "-", "-"]
    assert _json(capsys, "runs", str(tmp_path))["runs"][1]["status"] == status
    compared = _json(capsys, "runs", str(tmp_path), "--compare", "one", "two")
    assert compared["metrics"] == {"accuracy": [0.9, None]}


def test_runs_of_an_empty_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert _run(capsys, "runs", str(tmp_path))[:2] == (0, f"no runs in {tmp_path}\n")
    assert _json(capsys, "runs", str(tmp_path)) == {"runs": []}


def test_compare(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    _record(tmp_path, "one")
    _record(tmp_path, "two", {"seconds": 2.0, "metrics": {"accuracy": 0.95, "f1": 0.5}})
    compared = _json(capsys, "runs", str(tmp_path), "--compare", "one", str(tmp_path / "two"))
    assert compared["recipe"] == {"name": ["one", "two"], "train.lr": [1, 2.0]}
    assert compared["metrics"] == {"accuracy": [0.9, 0.95], "f1": [None, 0.5]}
    code, out, _ = _run(capsys, "runs", str(tmp_path), "--compare", "one", "two")
    assert code == 0
    assert out.splitlines()[-2].split() == ["accuracy", "0.9", "0.95", "0.05"]
    code, _, err = _run(capsys, "runs", str(tmp_path), "--compare", "one", "twoo")
    assert code == 2
    assert "Did you mean 'two'" in err


@pytest.mark.parametrize("content", ["{", "[]", '{"name": "one"}'])
def test_a_broken_record_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path, content: str) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "run.json").write_text(content)
    code, _, err = _run(capsys, "runs", str(tmp_path))
    assert code == 2
    assert "one/run.json" in err


def test_a_closed_pipe_is_quiet() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([FMDIST, "list", "models"], stdout=writer, stderr=subprocess.PIPE, check=False)
    os.close(writer)
    assert done.stderr == b""
    assert done.returncode == 1
