"""The final scores of a run: metrics, interval, baseline, outputs and examples of a split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fmdist import storage
from fmdist.contracts import Task
from fmdist.data.loader import evaluation_loader
from fmdist.data.splits import Samples
from fmdist.tasks import decoding
from fmdist.tasks.decoding.run import Run
from fmdist.training.evaluation import as_arrays, confidence_interval, evaluate, score

EXAMPLES = 24
"""Examples kept of each sort: the largest errors, and others spread over the rest."""


def score_split(
    task: Task, split: Samples, name: str, train: Samples, batch_size: int, seed: int
) -> tuple[dict[str, Any], NDArray[np.float32]]:
    """Return a split's scores as JSON, and the rows (N, S) behind them."""
    evaluated = evaluate(task, task.roles(), split, batch_size, torch.device("cpu"))
    assert evaluated is not None
    return score_rows(task, split, name, train, evaluated[1], seed), evaluated[1]


def score_rows(
    task: Task, split: Samples, name: str, train: Samples, rows: NDArray[np.float32], seed: int
) -> dict[str, Any]:
    """Return the scores of rows (N, S), whoever computed them, with their interval and the baseline's."""
    primary, mode = task.primary
    return {
        "split": name,
        "size": len(split),
        "metrics": score(task, rows, split.targets),
        "primary": primary,
        "mode": mode,
        "interval": confidence_interval(task, rows, split.targets, seed),
        "baseline": score(task, task.baseline(train, split), split.targets),
        "target": {"kind": task.spec.target.kind, "names": list(task.spec.target.names)},
        "rule": task.decoding()["rule"],
    }


def gather(split: Samples, rule: dict[str, Any], run: Run) -> NDArray[np.float32]:
    """Return the rows (N, S) of a whole split, by a rule and whatever runs the model."""
    batches = evaluation_loader(split, decoding.BATCH)
    return np.concatenate([decoding.rows(rule, run, as_arrays(batch)) for batch in batches])


def write_scores(
    folder: Path, record: dict[str, Any], rule: dict[str, Any], rows: NDArray[np.float32], split: Samples
) -> None:
    """Write ``<split>.json``, ``<split>.npz`` and, where single samples have errors, ``examples.npz``."""
    folder.mkdir(parents=True, exist_ok=True)
    index = np.arange(len(split))
    np.savez_compressed(folder / f"{record['split']}.npz", outputs=rows, target=split.targets, index=index)
    error_N = decoding.errors(rule, rows, split.targets)
    if error_N is not None:
        chosen = _example_rows(error_N)
        raw = split.raw(chosen)
        if raw.dtype == np.uint8 and raw.ndim == 4:
            np.savez_compressed(folder / "examples.npz", image=raw, index=chosen)
    storage.write_json(folder / f"{record['split']}.json", record)


def _example_rows(error_N: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the positions of the largest errors, and of as many spread evenly over the rest."""
    order = np.argsort(-error_N, kind="stable")
    rest = order[EXAMPLES:]
    spread = rest[np.linspace(0, len(rest) - 1, min(EXAMPLES, len(rest))).astype(int)]
    return np.concatenate([order[:EXAMPLES], spread]).astype(np.int64)
