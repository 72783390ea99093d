"""``fmdist compress --analyze`` and pruning by what it measures, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from fmdist import storage
from tests.integration.command_line import SMALL, stamps, succeed
from tests.integration.command_line import fmdist as command

pytestmark = pytest.mark.slow

RECIPE = {
    **SMALL,
    "compress": {
        "max_drop": 1.0,
        "benchmark": {"samples": 10, "batch_size": 8},
        "sensitivity": {"samples": 100},
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained run."""
    made = tmp_path_factory.mktemp("sensitivity")
    (made / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    succeed(made, "train", "recipe.yaml")
    return made


def test_analyze_then_compress(folder: Path) -> None:
    said = succeed(folder, "compress", "runs/small", "--analyze")
    assert not (folder / "artifacts").exists()
    files = stamps(folder / "runs/small/sensitivity", "*")
    assert files.keys() == {"sensitivity.json", "sensitivity.html"}
    record = json.loads(succeed(folder, "compress", "runs/small", "--analyze", "--json").out)
    assert record == storage.read_json(folder / "runs/small/sensitivity/sensitivity.json")
    assert stamps(folder / "runs/small/sensitivity", "*.json") == {
        name: stamp for name, stamp in files.items() if name.endswith("json")
    }
    assert record["samples"] == 100
    order = [row["name"] for row in record["layers"]]
    shown = [line.split()[0] for line in said.out.splitlines()[2 : 2 + len(order)]]
    assert shown == order
    flags = ("--prune-weights", "0.6", "--allocate", "sensitivity", "--finetune-epochs", "0")
    succeed(folder, "compress", "runs/small", *flags)
    (done,) = storage.verify(folder / "artifacts/small")["passes"]
    assert done["config"]["allocate"] == "sensitivity"
    changed = done["coverage"]["torch"]["changed"]
    shares = {row["name"]: row["changed"] / row["of"] for row in changed}
    assert shares.get(order[0], 0.0) < max(shares.values())
    whole = done["coverage"]["torch"]["parameters"]
    assert sum(row["changed"] for row in changed) / whole == pytest.approx(0.6, abs=1e-3)


def test_flags_that_do_not_go_together(folder: Path) -> None:
    done = command(folder, "compress", "runs/small", "--allocate", "sensitivity")
    assert done.code == 2
    assert "give --prune-channels or --prune-weights too" in done.err.lower()
    done = command(folder, "compress", "runs/small", "--analyze", "--quantize", "int8")
    assert done.code == 2
    assert "compresses nothing" in done.err
