"""Every compression pass on every family: works, or is refused with the reason; no third case.

``python -m tests.contract.passes [MODEL]...`` does them and writes benchmarks/results/passes.json and the
table in README.md; `test_passes.py` does those on the torch model.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import RESULTS, write_results
from fmdist import component
from fmdist.compression.config import BenchmarkConfig, CompressConfig
from fmdist.compression.passes.base import TorchPass
from fmdist.compression.pipeline import compress
from fmdist.compression.reducing import reduce
from fmdist.compression.stage import Stages
from fmdist.compression.subject import Subject
from fmdist.errors import FmdistError
from fmdist.training.checkpoint import weights_digest
from tests.contract.families import Family, find_family, pairs, trained

SETTINGS: dict[str, dict[str, Any]] = {
    "prune_channels": {"ratio": 0.5, "multiple": 2, "finetune": None},
    "low_rank": {"ratio": 0.2, "method": "randomized", "finetune": None},
    "prune_weights": {"sparsity": 0.5, "schedule": "one_shot", "finetune": None},
    "quantize_aware": {"finetune": {"epochs": 1}},
    "quantize": {"ranges": ("mean",), "bias_correction": ("none",)},
}
"""What each pass is asked for; others are asked for their defaults."""

README = Path(__file__).parents[2] / "README.md"
MARK = "<!-- passes -->"


def subject_of(family: Family) -> Subject:
    """Return a family's model after three steps."""
    task = family.build()
    trained(task, family.data)
    export = family.export(task)
    for module in task.roles().values():
        module.requires_grad_(True)
    return Subject(
        name="family",
        task=task,
        export=export,
        splits=family.data,
        recipe={
            "name": "family",
            "seed": 0,
            "model": family.model_config.to_recipe(),
            "train": {"batch_size": 256},
        },
        source="runs/family",
        fingerprint=weights_digest(task.served(task.roles())),
    )


def settings_of(kind: str) -> Any:
    """Return the pass's settings."""
    return component.load(component.find("passes", kind)).model_validate(SETTINGS.get(kind, {}))


def cell(subject: Subject, kind: str, folder: Path) -> dict[str, Any]:
    """Return what a pass did to a model: ``left``, the share of it that is left; or ``refused``, why not."""
    settings = settings_of(kind)
    try:
        if isinstance(settings, TorchPass):
            reduced, done = reduce(subject, subject, settings, Stages(folder))
            _check_equal(subject, reduced)
            before, after = done.record["before"], done.record["after"]
            what = "nonzero" if kind == "prune_weights" else "parameters"
            return {"left": after[what] / before[what]}
        fast = BenchmarkConfig(samples=10, batch_size=4, max_seconds=1.0, torch_compile=False, memory=False)
        config = CompressConfig(passes=(settings,), max_drop=1e9, calibration_samples=16, benchmark=fast)
        models = compress(subject, config, folder / "artifact").manifest["models"]
    except FmdistError as error:
        return {"refused": " ".join(str(error).split())}
    ratios = [
        found["size_ratio"]
        for runtime in models.values()
        for name, found in runtime.items()
        if name != "fp32"
    ]
    return {"left": max(ratios)}


def _check_equal(subject: Subject, reduced: Subject) -> None:
    """What is saved and built anew answers in the shape of the original, on another batch."""
    inputs = subject.export.example_inputs(*subject.export.probes[-1])
    with torch.no_grad():
        found = reduced.export.module(*inputs)
        assert found.shape == subject.export.module(*inputs).shape
        assert bool(torch.isfinite(found).all())


def table(rows: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Return the results as README shows them."""
    kinds = list(next(iter(rows.values())))
    lines = [f"| model kind | {' | '.join(f'`{kind}`' for kind in kinds)} |", "|---" * (len(kinds) + 1) + "|"]
    for name, cells in rows.items():
        shown = ["refused" if "refused" in cells[kind] else f"{cells[kind]['left']:.2f}" for kind in kinds]
        lines.append(f"| `{name}` | {' | '.join(shown)} |")
    return "\n".join(lines)


def main(chosen: Sequence[str]) -> None:
    """Do every pass on the chosen kinds of model, all by default; write the results and README's table."""
    built: dict[str, Any] = {}
    kinds = sorted(component.kinds("passes"), key=lambda kind: (settings_of(kind).order, kind))
    rows: dict[str, dict[str, Any]] = recorded() if chosen else {}
    done: set[str] = set()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for task, model in pairs():
            if model in done or (chosen and model not in chosen):
                continue
            done.add(model)
            subject = subject_of(find_family(task, model, folder, built))
            rows[model] = {}
            for kind in kinds:
                where = folder / f"{task}-{model}-{kind}"
                where.mkdir()
                rows[model][kind] = cell(subject, kind, where)
            sys.stdout.write(f"{model}: {json.dumps(rows[model])}\n")
            sys.stdout.flush()
            write_results("passes", {"rows": dict(sorted(rows.items()))})
    before, _, after = README.read_text(encoding="utf-8").split(MARK)
    README.write_text(f"{before}{MARK}\n{table(recorded())}\n{MARK}{after}", encoding="utf-8")


def recorded() -> dict[str, Any]:
    """Return the results of the last run."""
    rows: dict[str, Any] = json.loads((RESULTS / "passes.json").read_text(encoding="utf-8"))["rows"]
    return rows


if __name__ == "__main__":
    main(sys.argv[1:])
