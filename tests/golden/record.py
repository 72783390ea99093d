"""The first losses of every family, from fixed seeds: ``python -m tests.golden.record`` writes them anew.

They change only where the arithmetic of a model, a loss, an initialization or a data set changes; such a
change belongs into the commit that means it.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch

from fmdist.data.splits import DataSplits
from fmdist.environment import hardware
from tests.contract.families import find_family, pairs, trained

FILE = Path(__file__).parent / "losses.json"
STEPS = 3


def losses_of(task: str, model: str, folder: Path, built: dict[str, DataSplits]) -> list[float]:
    """Return the first phase's mean losses, one a step."""
    family = find_family(task, model, folder, built)
    return trained(family.build(), family.data, STEPS)


def arithmetic() -> dict[str, Any]:
    """Return what decides the last bits: on another machine losses may differ in them."""
    return {
        "cpu": hardware()["cpu"],
        "flags": hardware()["flags"],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        built: dict[str, DataSplits] = {}
        found = {f"{task}-{model}": losses_of(task, model, Path(name), built) for task, model in pairs()}
    FILE.write_text(json.dumps({"arithmetic": arithmetic(), "losses": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
