"""Copies of checkpoints on a store: fsspec's own in memory and a folder."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from torch import nn

from fmdist import storage
from fmdist.errors import CheckpointError
from fmdist.training.checkpoint import CheckpointStore
from fmdist.training.config import CheckpointConfig
from fmdist.training.mirror import Mirror
from fmdist.training.snapshot import Trainables
from tests.faults.rig import load, save


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield "memory://runs" if request.param == "memory" else f"file://{tmp_path}/far"
    fsspec.filesystem("memory").store.clear()


def store(folder: Path, url: str, keep: int = 2) -> CheckpointStore:
    return CheckpointStore(
        folder, "max", CheckpointConfig(store=url, keep=keep), {"recipe": {"name": "one"}, "versions": {}}
    )


def trainables(value: float) -> Trainables:
    model = nn.Linear(2, 2)
    nn.init.constant_(model.weight, value)
    return Trainables({"model": model}, {}, {"model": torch.optim.SGD(model.parameters())})


def test_copies_follow_what_is_kept(url: str, tmp_path: Path) -> None:
    kept = store(tmp_path / "here", url)
    for step in (1, 2, 3):
        save(kept, step, trainables(step), {}, None)
    assert Mirror(url, "one").names() == ["step-0000000002", "step-0000000003"]


def test_a_lost_folder_is_brought_back(url: str, tmp_path: Path) -> None:
    save(store(tmp_path / "here", url), 4, trainables(4.0), {}, None)
    again = store(tmp_path / "elsewhere", url)
    again.bring_back()
    saved = again.newest()
    assert saved is not None
    assert saved.step == 4
    loaded = trainables(0.0)
    load(again, saved, loaded)
    model = loaded.roles["model"]
    assert isinstance(model, nn.Linear)
    assert torch.equal(model.weight, torch.full((2, 2), 4.0))


def test_a_damaged_copy_is_named_and_not_used(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save(store(tmp_path / "here", url), 4, trainables(4.0), {}, None)
    system, path = fsspec.core.url_to_fs(f"{url}/one/step-0000000004/model.safetensors")
    system.pipe_file(path, system.cat_file(path)[:-1])
    again = store(tmp_path / "elsewhere", url)
    with caplog.at_level(logging.WARNING):
        again.bring_back()
    assert "is damaged" in caplog.text
    assert again.newest() is None
    assert not list((tmp_path / "elsewhere").glob(".*.tmp"))


def test_a_copy_without_its_manifest_is_none(url: str, tmp_path: Path) -> None:
    kept = store(tmp_path / "here", url)
    save(kept, 4, trainables(4.0), {}, None)
    system, path = fsspec.core.url_to_fs(f"{url}/one/step-0000000004/{storage.MANIFEST}")
    system.rm_file(path)
    assert Mirror(url, "one").names() == []
    save(kept, 5, trainables(5.0), {}, None)
    assert Mirror(url, "one").names() == ["step-0000000004", "step-0000000005"]


def test_a_store_that_fails_is_told_and_tried_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    kept = store(tmp_path / "here", f"file://{tmp_path}/file")
    with caplog.at_level(logging.WARNING):
        save(kept, 1, trainables(1.0), {}, None)
    assert "The next checkpoint tries again" in caplog.text
    (tmp_path / "file").unlink()
    save(kept, 2, trainables(2.0), {}, None)
    assert len(Mirror(f"file://{tmp_path}/file", "one").names()) == 2


@pytest.mark.parametrize("wrong", ["nosuch://bucket", "file:///proc/nowhere"])
def test_a_store_that_cannot_be_written_is_refused_before_any_work(wrong: str) -> None:
    with pytest.raises(CheckpointError, match=r"train\.checkpoint\.store"):
        Mirror(wrong, "one").check()


def test_a_damaged_checkpoint_is_replaced_by_its_copy(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = store(tmp_path / "here", url)
    for step in (1, 2):
        save(kept, step, trainables(step), {}, None)
    weights = tmp_path / "here" / "step-0000000002" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        saved = store(tmp_path / "here", url).newest()
    assert "fetching its copy" in caplog.text
    assert saved is not None
    assert saved.step == 2
    storage.verify(saved.path)


def test_runs_of_one_store_leave_each_other_alone(url: str, tmp_path: Path) -> None:
    save(store(tmp_path / "here", url), 1, trainables(1.0), {}, None)
    config = CheckpointConfig(store=url)
    other = CheckpointStore(tmp_path / "there", "max", config, {"recipe": {"name": "two"}, "versions": {}})
    save(other, 5, trainables(5.0), {}, None)
    assert Mirror(url, "one").names() == ["step-0000000001"]
    assert Mirror(url, "two").names() == ["step-0000000005"]


def test_what_else_lies_in_a_store_is_left_alone(url: str, tmp_path: Path) -> None:
    system, path = fsspec.core.url_to_fs(f"{url}/one/artifact/{storage.MANIFEST}")
    system.makedirs(path.rpartition("/")[0], exist_ok=True)
    system.pipe_file(path, b"{}")
    save(store(tmp_path / "here", url), 1, trainables(1.0), {}, None)
    assert system.exists(path)


def test_a_store_out_of_reach_matters_only_if_nothing_is_here(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    out = f"file://{tmp_path}/file"
    kept = store(tmp_path / "here", out)
    kept.mirror = Reached(out, "one")
    with pytest.raises(CheckpointError, match="can't be read"):
        kept.bring_back()
    save(kept, 1, trainables(1.0), {}, None)
    with caplog.at_level(logging.WARNING):
        kept.bring_back()
    assert "Going on from what is here" in caplog.text


class Reached(Mirror):
    """A store that answers nothing."""

    def names(self) -> list[str]:
        raise CheckpointError(
            field="train.checkpoint.store", problem="the store can't be read", value=self.url
        )
