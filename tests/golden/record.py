"""The first losses of every family, from fixed seeds: ``python -m tests.golden.record`` writes them anew.

They change only where the arithmetic of a model, a loss, an initialization or a data set changes; such a
change belongs into the commit that means it. They are of float64: in float32 the order in which a CPU adds
shows after two steps of a deep network. CPUs that have AVX2 agree within 1e-8.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import torch

from fmdist.data.splits import DataSplits
from tests.contract.families import find_family, pairs, trained

FILE = Path(__file__).parent / "losses.json"
STEPS = 3


def losses_of(task: str, model: str, folder: Path, built: dict[str, DataSplits]) -> list[float]:
    """Return the first phase's mean losses, one a step."""
    family = find_family(task, model, folder, built)
    return trained(family.build(), family.data, STEPS, dtype=torch.float64)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        built: dict[str, DataSplits] = {}
        found = {f"{task}-{model}": losses_of(task, model, Path(name), built) for task, model in pairs()}
    FILE.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
