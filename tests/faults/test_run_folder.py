"""Who may write into a run's folder, and what a kill may leave there."""

from __future__ import annotations

import os
import signal
import time
import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from fmdist import stages, storage
from fmdist.errors import CheckpointError
from fmdist.training import session
from tests.faults.rig import outcome, small_recipe, steps

RECIPE = small_recipe({"epochs": 1})


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["thesis.txt", "recipe.yaml", "checkpoints", ".notes.tmp"])
def test_a_folder_with_other_files_stays_untouched(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(CheckpointError, match=f"not empty and holds no run, got .*{name}"):
        stages.train(RECIPE, output=tmp_path)
    assert content(tmp_path) == {name: b"mine"}


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("mine")
    with pytest.raises(CheckpointError, match="not a directory"):
        stages.train(RECIPE, output=tmp_path / "run")


def test_another_run_and_a_finished_run_stay_untouched(tmp_path: Path) -> None:
    stages.train(RECIPE, output=tmp_path)
    before = content(tmp_path)
    with pytest.raises(CheckpointError, match=r"holds another run: the recipe differs in seed, train\.lr"):
        stages.train(RECIPE, output=tmp_path, overrides=["train.lr=0.5", "seed=4"])
    with pytest.raises(CheckpointError, match="the run is finished"):
        stages.train(RECIPE, output=tmp_path)
    assert content(tmp_path) == before


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    with storage.lock(tmp_path), pytest.raises(CheckpointError, match="another process is writing here"):
        stages.train(RECIPE, output=tmp_path)
    stages.train(RECIPE, output=tmp_path)


def test_what_a_killed_command_left_training_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages.train(RECIPE, output=tmp_path)
    longer, trained = (
        small_recipe({"epochs": 2}),
        [*steps(tmp_path), (tmp_path / "metrics.jsonl").read_bytes()],
    )
    with ExitStack() as workers:
        workers.enter_context(storage.lock(tmp_path, session.LOCK))
        with monkeypatch.context() as patch:
            patch.setattr(session, "WAIT_SECONDS", 0.1)
            with pytest.raises(CheckpointError, match="another process is writing here"):
                stages.train(longer, output=tmp_path)
        assert [*steps(tmp_path), (tmp_path / "metrics.jsonl").read_bytes()] == trained
        monkeypatch.setattr(time, "sleep", lambda seconds: workers.close())
        stages.train(longer, output=tmp_path)


def test_a_fork_does_not_keep_the_lock_of_its_killed_parent(tmp_path: Path) -> None:
    wait, release = os.pipe()
    forked, tell = os.pipe()
    with storage.lock(tmp_path):
        pid = os.fork()
        if pid == 0:  # a data loader's worker that outlives the run
            os.close(release)
            os.write(tell, b".")
            os.read(wait, 1)
            os._exit(0)
        os.read(forked, 1)
    try:
        # Closing the parent's descriptor is what a kill does; a descriptor left in the fork would hold on.
        with storage.lock(tmp_path):
            pass
    finally:
        for descriptor in (release, wait, forked, tell):
            os.close(descriptor)
        os.waitpid(pid, 0)


def die_at_write(number: int, recipe: dict[str, Any], folder: Path) -> bool:
    """Train in a fork that is killed right before its n-th atomic file is renamed into place."""
    pid = os.fork()
    if pid == 0:
        writes = 0
        replace = Path.replace

        def counted(path: Path, target: Path) -> Path:
            nonlocal writes
            writes += 1
            if writes == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return replace(path, target)

        Path.replace = counted  # type: ignore[method-assign, assignment]
        try:
            stages.train(recipe, output=folder)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert code in (0, -signal.SIGKILL)
    return code != 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_kill_at_each_file_of_a_new_run(tmp_path: Path) -> None:
    stages.train(RECIPE, output=tmp_path / "whole")
    number = 1
    while die_at_write(number, RECIPE, tmp_path / f"run-{number}"):
        stages.train(RECIPE, output=tmp_path / f"run-{number}")
        assert outcome(tmp_path / f"run-{number}") == outcome(tmp_path / "whole")
        assert not list((tmp_path / f"run-{number}").rglob("*.tmp"))
        number += 1
    assert number > 8


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_kill_at_each_file_when_a_finished_run_goes_on(tmp_path: Path) -> None:
    longer = small_recipe({"epochs": 2})
    stages.train(longer, output=tmp_path / "whole")
    number = 1
    while True:
        stages.train(RECIPE, output=tmp_path / f"run-{number}")
        if not die_at_write(number, longer, tmp_path / f"run-{number}"):
            break
        stages.train(longer, output=tmp_path / f"run-{number}")
        assert outcome(tmp_path / f"run-{number}") == outcome(tmp_path / "whole")
        number += 1
    assert number > 8


def test_leftovers_of_a_kill_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".run.json.0a1b2c3d.tmp").write_text("{")
    (tmp_path / "quarantine.jsonl").write_text("")
    stages.train(RECIPE, output=tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))
    assert len(steps(tmp_path)) == 1
