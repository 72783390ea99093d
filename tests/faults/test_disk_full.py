"""A full disk loses nothing: neither the checkpoints before it nor the run."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fmdist import stages, storage
from fmdist.cli import failures
from fmdist.errors import TrainingError
from fmdist.training.checkpoint import CheckpointStore
from fmdist.training.config import CheckpointConfig
from fmdist.training.snapshot import Trainables
from tests.faults.rig import outcome, save, small_recipe

LIMIT_BYTES = 4096
"""Less than the weights, more than state.json and the metrics."""


@contextmanager
def small_files_only() -> Iterator[None]:
    """Let no file grow beyond the limit, as a disk without space would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def trainables() -> Trainables:
    model = nn.Linear(64, 64)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    return Trainables({"model": model}, {}, {"model": optimizer})


def whole_steps(store: CheckpointStore) -> list[str]:
    for path in store.folder.iterdir():
        storage.verify(path)  # fails on anything that is partial
    return sorted(path.name for path in store.folder.iterdir())


def test_a_file_that_can_t_grow(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, "max", CheckpointConfig(keep=1))
    save(store, 1, trainables(), {}, None)
    with small_files_only(), pytest.raises(OSError, match="File too large") as caught:
        save(store, 2, trainables(), {}, None)
    assert caught.value.errno == errno.EFBIG
    assert whole_steps(store) == ["step-0000000001"]
    save(store, 2, trainables(), {}, None)
    assert whole_steps(store) == ["step-0000000002"]


def fail_at(patch: pytest.MonkeyPatch, position: int) -> list[str]:
    """Raise ENOSPC at one of the calls that write; return the names of those made, which grows."""
    made: list[str] = []

    def wrap(owner: Any, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            made.append(name)
            if len(made) == position:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return original(*arguments, **named)

        patch.setattr(owner, name, call)

    for owner, name in ((os, "fsync"), (os, "mkdir"), (os, "rename"), (os, "replace"), (Path, "write_text")):
        wrap(owner, name)
    wrap(__import__("fmdist.training.checkpoint", fromlist=["save_file"]), "save_file")
    return made


def test_no_space_at_each_write_in_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CheckpointStore(tmp_path, "max", CheckpointConfig(keep=1))
    save(store, 1, trainables(), {}, None)
    with monkeypatch.context() as patch:
        made = fail_at(patch, 0)
        save(store, 2, trainables(), {}, None)
    assert {"save_file", "write_text", "fsync", "mkdir", "rename", "replace"} == set(made)
    committed = len(made) - 1 - made[::-1].index("fsync")  # of the parent folder, after the rename
    for position in range(1, len(made) + 1):
        step = 2 + position
        before = whole_steps(store)
        with monkeypatch.context() as patch:
            fail_at(patch, position)
            with pytest.raises(OSError, match="No space left"):
                save(store, step, trainables(), {}, None)
        added = set(whole_steps(store)) - set(before)
        assert set(before) <= set(whole_steps(store))
        assert added == ({f"step-{step:010d}"} if position > committed else set())


@pytest.mark.parametrize("verbose", [False, True])
def test_the_command_line_says_it_and_the_run_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], verbose: bool
) -> None:
    recipe = small_recipe({"checkpoint": {"every_steps": 4}}, model={"kind": "mlp", "hidden": [64]})
    with small_files_only():
        code = failures.guard(
            lambda: stages.train(recipe, output=tmp_path / "run"), ["-v"] if verbose else []
        )
    assert code == 1
    assert "error: no space left on the disk" in capsys.readouterr().err
    assert storage.read_json(tmp_path / "run" / "run.json")["status"] == "failed"
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    stages.train(recipe, output=tmp_path / "run")
    stages.train(recipe, output=tmp_path / "whole")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_a_full_disk_does_not_hide_what_ended_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: Any) -> None:
        monkeypatch.setattr(storage, "write_text", no_space)
        raise TrainingError(problem="the real reason")

    def no_space(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("fmdist.training.session.fit", fail)
    with pytest.raises(TrainingError, match="the real reason"):
        stages.train(small_recipe(), output=tmp_path / "run")
    assert "the status 'failed' could not be written" in caplog.text
