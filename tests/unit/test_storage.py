from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from fmdist import storage
from fmdist.errors import CheckpointError


class _StopError(Exception):
    pass


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_write_replaces_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    storage.write_text(path, "old")
    storage.write_text(path, "new")
    assert path.read_text() == "new"
    assert _names(tmp_path) == ["a.txt"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    storage.write_text(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        storage.write_text(path, "new")
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_has_no_nan(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="Out of range"):
        storage.write_json(tmp_path / "a.json", {"x": value})
    assert _names(tmp_path) == []


def test_json_round_trip_and_errors(tmp_path: Path) -> None:
    storage.write_json(tmp_path / "a.json", {"x": [1, None]})
    assert storage.read_json(tmp_path / "a.json") == {"x": [1, None]}
    with pytest.raises(CheckpointError, match="file not found"):
        storage.read_json(tmp_path / "b.json")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(CheckpointError, match="not valid JSON"):
        storage.read_json(tmp_path / "b.json")


def _commit(path: Path) -> None:
    with storage.committed_directory(path, {"step": 3}) as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "weights.bin").write_bytes(b"12345678")
        (folder / "state.json").write_text("{}")


def test_a_committed_directory_verifies(tmp_path: Path) -> None:
    _commit(tmp_path / "one")
    manifest = storage.verify(tmp_path / "one")
    assert manifest["step"] == 3
    assert sorted(manifest["files"]) == ["deep/weights.bin", "state.json"]
    assert manifest["files"]["deep/weights.bin"]["bytes"] == 8
    assert manifest["files"]["deep/weights.bin"]["sha256"] == storage.sha256(
        tmp_path / "one/deep/weights.bin"
    )
    assert _names(tmp_path) == ["one"]


def test_a_directory_is_never_overwritten(tmp_path: Path) -> None:
    _commit(tmp_path / "one")
    with pytest.raises(CheckpointError, match="never overwritten"):
        _commit(tmp_path / "one")
    storage.verify(tmp_path / "one")


def test_nothing_remains_of_a_directory_that_fails(tmp_path: Path) -> None:
    def fill() -> None:
        with storage.committed_directory(tmp_path / "one", {}) as folder:
            (folder / "x").write_text("x")
            raise _StopError

    with pytest.raises(_StopError):
        fill()
    assert _names(tmp_path) == []


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda file: file.unlink(), "missing from its directory"),
        (lambda file: file.write_bytes(b"1234"), "truncated"),
        (lambda file: file.write_bytes(b"12345679"), "doesn't match its SHA-256"),
    ],
    ids=["missing", "truncated", "flipped"],
)
def test_damage_is_found_and_named(tmp_path: Path, damage: object, said: str) -> None:
    assert callable(damage)
    _commit(tmp_path / "one")
    damage(tmp_path / "one" / "deep" / "weights.bin")
    with pytest.raises(CheckpointError, match=said) as caught:
        storage.verify(tmp_path / "one")
    assert caught.value.problems[0].field.endswith("one/deep/weights.bin")


def test_a_directory_without_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"manifest\.json: file not found"):
        storage.verify(tmp_path)


def test_leftovers_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".one.1234.tmp").mkdir()
    (tmp_path / ".one.1234.tmp" / "x").write_text("x")
    (tmp_path / ".a.json.1234.tmp").write_text("x")
    (tmp_path / "kept.tmp").write_text("x")
    storage.remove_leftovers(tmp_path)
    assert _names(tmp_path) == ["kept.tmp"]


def _hold(folder: Path, ready: str) -> None:
    with storage.lock(folder):
        Path(ready).write_text("ready")
        time.sleep(60)


def test_a_lock_excludes_others_until_its_holder_is_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    holder = multiprocessing.get_context("spawn").Process(target=_hold, args=(tmp_path / "run", str(ready)))
    holder.start()
    try:
        while not ready.exists():
            assert holder.is_alive()
            time.sleep(0.01)
        with (
            pytest.raises(CheckpointError, match="another process is writing here"),
            storage.lock(tmp_path / "run"),
        ):
            pass
    finally:
        assert holder.pid is not None
        os.kill(holder.pid, signal.SIGKILL)
        holder.join()
    with storage.lock(tmp_path / "run"):
        pass


def test_a_lock_can_be_taken_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(_StopError), storage.lock(tmp_path):
        raise _StopError
    with storage.lock(tmp_path):
        assert json.dumps(_names(tmp_path)) == '[".lock"]'


def test_a_lock_waits_for_its_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ExitStack() as holder:
        holder.enter_context(storage.lock(tmp_path, "one"))
        with storage.lock(tmp_path, "another"):
            pass
        monkeypatch.setattr(time, "sleep", lambda seconds: holder.close())
        with storage.lock(tmp_path, "one", seconds=60):
            assert _names(tmp_path) == ["another", "one"]


def _sealed(folder: Path) -> Path:
    folder.mkdir()
    (folder / "a.txt").write_text("mine")
    storage.seal(folder, {})
    return folder


def test_a_manifest_reaches_nothing_outside_of_its_directory(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("mine")
    absolute = str(tmp_path / "secret.txt")
    for place, name in enumerate([absolute, "../secret.txt", "x/../../secret.txt", "link.txt"]):
        folder = _sealed(tmp_path / f"sealed{place}")
        if name == "link.txt":
            (folder / name).symlink_to(absolute)
        manifest = storage.read_json(folder / storage.MANIFEST)
        manifest["files"][name] = manifest["files"]["a.txt"]
        manifest[storage.OWN_HASH] = storage._own_hash(manifest)
        storage.write_json(folder / storage.MANIFEST, manifest)
        with pytest.raises(CheckpointError, match="a file outside of its directory"):
            storage.verify(folder)


@pytest.mark.parametrize(("old", "new"), [("0.25", "0.250"), ("1e-07", "1E-07"), ("0.25", "9e999")])
def test_a_manifest_is_checked_to_the_letter(tmp_path: Path, old: str, new: str) -> None:
    folder = _sealed(tmp_path / "sealed")
    storage.seal(folder, {"seconds": 0.25, "rate": 1e-7})
    text = (folder / storage.MANIFEST).read_text()
    assert text.count(old) == 1
    (folder / storage.MANIFEST).write_text(text.replace(old, new))
    with pytest.raises(CheckpointError, match=r"manifest\.json: the content doesn't match its own"):
        storage.verify(folder)


def test_a_link_within_a_sealed_directory_is_fine(tmp_path: Path) -> None:
    folder = _sealed(tmp_path / "sealed")
    (folder / "b.txt").symlink_to("a.txt")
    storage.seal(folder, {})
    assert set(storage.verify(folder)["files"]) == {"a.txt", "b.txt"}
