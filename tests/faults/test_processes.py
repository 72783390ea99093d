"""Real processes: the command line under signals, and a dozen kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from fmdist import stages, storage
from tests.faults.rig import newest, small_recipe, steps, tensors

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def start(recipe: Path, folder: Path) -> subprocess.Popen[str]:
    command = [str(Path(sys.executable).with_name("fmdist")), "train", str(recipe), "-o", str(folder)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_for_records(process: subprocess.Popen[str], folder: Path) -> None:
    metrics = folder / "metrics.jsonl"
    while not metrics.exists() or metrics.stat().st_size < 1000:
        assert process.poll() is None
        time.sleep(0.005)


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, said = process.communicate(timeout=120)
    return process.returncode, said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_command_resumes(number: signal.Signals, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    # Workers too: the signal goes to the whole process group, as Ctrl-C and a batch system send it.
    train = {"epochs": 30, "workers": 0 if number == signal.SIGTERM else 2}
    recipe.write_text(yaml.safe_dump(small_recipe(train)))
    process = start(recipe, tmp_path / "parts")
    wait_for_records(process, tmp_path / "parts")
    os.killpg(process.pid, number)
    code, said = finish(process)
    assert code == 128 + number, said
    assert "the same command resumes" in said
    assert "Traceback" not in said
    assert storage.read_json(tmp_path / "parts" / "run.json")["status"] == "interrupted"
    storage.verify(newest(tmp_path / "parts"))
    stopped = newest(tmp_path / "parts").name
    code, said = finish(start(recipe, tmp_path / "parts"))
    assert code == 0, said
    assert f"({stopped})" in said
    stages.train(recipe, output=tmp_path / "whole", overrides=["train.workers=0"])
    assert tensors(newest(tmp_path / "parts")) == tensors(newest(tmp_path / "whole"))


def test_a_kill_with_loader_processes_frees_the_folder_at_once(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(small_recipe({"epochs": 400, "workers": 2})))
    process = start(recipe, tmp_path / "run")
    wait_for_records(process, tmp_path / "run")
    while not steps(tmp_path / "run"):
        assert process.poll() is None
        time.sleep(0.005)
    process.kill()
    process.wait()
    with storage.lock(tmp_path / "run"):
        assert steps(tmp_path / "run")
    finish(process)


@pytest.mark.timeout(900)
def test_a_dozen_kills(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.faults.sweep", "--kills", "12", "--seed", "1"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "sweep.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    swept = storage.read_json(tmp_path / "sweep.json")
    assert swept["kills"] == 12
    assert swept["resumes_from_a_checkpoint"] > 0
    assert swept["bit_identical_runs"] == swept["runs"] > 0
    # Of two intervals of three steps: one whose checkpoint is being written, and one that has begun.
    assert swept["steps_lost_per_kill"]["max"] <= 6
