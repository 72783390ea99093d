"""One small run with its artifact, made once and copied by whoever changes it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.integration.command_line import RECIPE, Life, succeed


@pytest.fixture(scope="session")
def life(tmp_path_factory: pytest.TempPathFactory) -> Life:
    """What ``fmdist run`` leaves of a small recipe."""
    folder = tmp_path_factory.mktemp("life")
    (folder / "life.yaml").write_text(RECIPE)
    return Life(folder, succeed(folder, "run", "life.yaml"))


@pytest.fixture
def lived(life: Life, tmp_path: Path) -> Path:
    """A copy of `life`'s folder to change, times of its files included."""
    return shutil.copytree(life.folder, tmp_path / "lived")
