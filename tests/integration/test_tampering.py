"""One changed bit in any file of an artifact is named, and nothing of the artifact is run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fmdist import storage
from fmdist.deployment import artifact
from tests.integration.command_line import Life, fmdist, succeed

ROUNDS = 5
"""Bits that are flipped in every file, one at a time."""


@pytest.fixture
def never_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any) -> None:
        message = "a damaged model was opened"
        raise AssertionError(message)

    monkeypatch.setattr(artifact, "open_model", run)


def flips(folder: Path) -> Iterator[Path]:
    """Flip one bit at a time, and yield its file."""
    draw = random.Random(0)
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size):
        content = file.read_bytes()
        for _ in range(ROUNDS):
            place = draw.randrange(len(content))
            changed = bytearray(content)
            changed[place] ^= 1 << draw.randrange(8)
            file.write_bytes(changed)
            yield file
        file.write_bytes(content)


@pytest.mark.slow
@pytest.mark.usefixtures("never_run")
def test_a_flipped_bit_is_named(lived: Path) -> None:
    made = lived / "artifacts" / "life"
    files = set()
    for file in flips(made):
        done = fmdist(lived, "evaluate", "artifacts/life")
        assert done.code == 2, file
        assert file.name in done.err, done.err
        assert "bug" not in done.err
        assert done.out == ""
        files.add(file.relative_to(made).as_posix())
    recorded = set(storage.read_json(made / "manifest.json")["files"])
    assert files == {
        name for name in recorded | {"manifest.json", "report.html"} if (made / name).stat().st_size
    }


@pytest.mark.slow
def test_untouched_it_is_evaluated(life: Life) -> None:
    assert "accuracy" in succeed(life.folder, "evaluate", "artifacts/life").out


@pytest.mark.slow
@pytest.mark.usefixtures("never_run")
def test_a_manifest_of_a_newer_version_is_refused_with_the_reason(lived: Path) -> None:
    made = lived / "artifacts" / "life"
    manifest = storage.verify(made)
    storage.seal(made, {**manifest, "format": 99})
    done = fmdist(lived, "evaluate", "artifacts/life")
    assert done.code == 2
    assert "format that this version doesn't read, got 99" in done.err
    assert "a later one" in done.err
