"""Candidates of a pass: each is written, scored in the runtime that will run it, and the best one is kept.

Shapes: N samples, S numbers that a sample's score takes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmdist.compression.passes.base import BUDGET_SLACK, Workbench
from fmdist.deployment.runtime import PRECISIONS, open_model
from fmdist.errors import CompressionError
from fmdist.tasks import decoding


@dataclass
class Trial:
    """One setting of one runtime, scored on the validation split."""

    runtime: str
    setting: str
    file: Path
    values: dict[str, float]
    """Precision -> primary metric."""
    drop: float
    """Of the worst precision, against the original."""
    error: float
    """Relative RMS difference of the rows from the original's, at float32."""
    seconds: float
    within: bool = True
    """Whether it loses no more than allowed."""
    sample: float = 0.0
    """The share of the validation split that one sample is."""
    reasons: dict[str, str] = field(default_factory=dict)
    """Layer -> why the setting leaves it in float."""

    def row(self, best: Trial, mode: str) -> dict[str, Any]:
        """Return what the manifest records."""
        worst = min if mode == "max" else max
        return {
            "runtime": self.runtime,
            "setting": self.setting,
            "values": self.values,
            "value": worst(self.values.values()),
            "drop": self.drop,
            "error": self.error,
            "seconds": round(self.seconds, 3),
            "chosen": self is best,
        }


def attempt(bench: Workbench, runtime: str, setting: str, write: Callable[[Path], None]) -> Trial:
    """Let ``write`` make a candidate and score it at every precision that the runtime offers."""
    suffix = "xml" if runtime == "openvino" else "onnx"
    file = bench.folder / f"{runtime}-{setting.replace(', ', '_').replace(' ', '-')}.{suffix}"
    start = time.perf_counter()
    write(file)
    seconds = time.perf_counter() - start
    rows = np.arange(len(bench.reference))
    reference = bench.score(bench.reference, rows)
    values: dict[str, float] = {}
    error = float("nan")
    # ONNX Runtime has one precision.
    for precision in PRECISIONS if runtime == "openvino" else ("default",):
        outputs = run(bench, file, runtime, precision)
        values[precision] = bench.score(outputs, rows)
        if precision == "f32" or runtime != "openvino":
            error = relative_rms(outputs, bench.reference)
    drop = max(bench.drop(value, reference) for value in values.values())
    trial = Trial(runtime, setting, file, values, drop, error, seconds, sample=1 / len(rows))
    trial.within = within_budget(bench, trial)
    return trial


def run(bench: Workbench, file: Path, runtime: str, precision: str) -> NDArray[np.float32]:
    """Return a model's rows (N, S) on the validation split."""
    session = open_model(file, runtime, precision)
    return decoding.rows(bench.rule, session.run, bench.validation)


def best_of(trials: Sequence[Trial]) -> Trial:
    """Return the smallest error of the outputs among those of the smallest drop.

    Drops that differ by one sample of the validation split are equal: the errors, of all its outputs, tell
    more. What is within the budget goes before what isn't.
    """
    pool = [trial for trial in trials if trial.within] or trials
    least = min(trial.drop for trial in pool)
    return min(
        (trial for trial in pool if trial.drop <= least + trial.sample + BUDGET_SLACK),
        key=lambda trial: trial.error,
    )


def within_budget(bench: Workbench, trial: Trial) -> bool:
    """Return whether the candidate loses no more than allowed."""
    return trial.drop <= bench.max_drop + BUDGET_SLACK


def budget_missed(bench: Workbench, trials: Sequence[Trial]) -> CompressionError:
    """Return the error that lists what was tried."""
    tried = ", ".join(f"{trial.setting} {trial.drop:.4g}" for trial in trials)
    return CompressionError(
        field="compress.max_drop",
        problem=f"{trials[0].runtime}: every setting loses more of the metric than allowed; tried: {tried}",
        value=round(best_of(trials).drop, 6),
        allowed=f"at most {bench.max_drop}",
        fix="allow a larger drop, calibrate on more samples, or leave this runtime out of compress.runtimes",
    )


def relative_rms(outputs: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Return the RMS of the difference over the RMS of the reference (over 1 if that is zero)."""
    difference = outputs.astype(np.float64) - reference
    scale = float(np.sqrt((reference.astype(np.float64) ** 2).mean())) or 1.0
    return float(np.sqrt((difference**2).mean())) / scale
