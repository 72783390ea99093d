"""A few rounds of the kill sweep; `make sweep` makes all of them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fmdist import storage

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]


def test_a_driver_a_worker_and_a_controller(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.distributed.sweep", "--kills", "3", "--seed", "1"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "sweep.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    swept = storage.read_json(tmp_path / "sweep.json")
    assert swept["kills"] == 3
    assert set(swept["kills_by_kind"].values()) == {1}
    assert swept["bit_identical_runs"] == swept["runs"] > 0
    assert swept["intervals_lost_per_kill"]["max"] <= 1
