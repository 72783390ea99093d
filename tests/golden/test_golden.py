"""Every family still computes what it computed when its losses were recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fmdist.data.splits import DataSplits
from tests.contract.families import pairs
from tests.golden.record import FILE, losses_of

pytestmark = pytest.mark.slow

RECORDED = json.loads(FILE.read_text())

_built: dict[str, DataSplits] = {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.mark.parametrize(("task", "model"), pairs(), ids="-".join)
def test_losses_are_those_recorded(task: str, model: str, folder: Path) -> None:
    expected = RECORDED.get(f"{task}-{model}")
    assert expected is not None, "record it: python -m tests.golden.record"
    assert losses_of(task, model, folder, _built) == pytest.approx(expected, rel=1e-6)
