"""Rules by which scores and answers come from running a model; a rule travels with every artifact as JSON.

NumPy only: deployment needs no torch, and the same code scores torch and the artifact. A rule is
``{"rule": name, ...}``; the module that `RULES` names has ``feed``, ``rows``, ``decode``, ``answer``,
``errors`` and ``OPTIONS``, as `fmdist.tasks.decoding.direct` shows.

Shapes: N samples, S numbers that a sample's score takes.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmdist.errors import UsageError, did_you_mean
from fmdist.tasks.decoding.run import Arrays, Run, chunks

RULES = {
    "class": "direct",
    "labels": "direct",
    "value": "direct",
    "likelihood": "language",
    "translate": "translation",
    "reconstruct": "reconstruction",
    "elbo": "reconstruction",
    "images": "images",
    "rate": "recommendation",
    "rank": "recommendation",
}
"""Rule -> the module of this package that knows it."""

Rule = Mapping[str, Any]

BATCH = 256
"""Samples of one call where a whole split is run."""


def feed(rule: Rule, batch: Arrays) -> dict[str, NDArray[Any]]:
    """Return inputs of one representative call of the model for these samples, batch first."""
    return dict(_module(rule).feed(rule, batch))


def rows(rule: Rule, run: Run, batch: Arrays, batch_size: int = BATCH) -> NDArray[np.float32]:
    """Return what metrics take, float32 (N, S); runs the model as often as the rule needs."""
    parts = [_module(rule).rows(rule, run, part) for part in chunks(batch, batch_size)]
    return np.concatenate(parts).astype(np.float32, copy=False)


def answer(
    rule: Rule, run: Run, batch: Arrays, options: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """Return one answer per sample, as JSON values.

    Raises:
        UsageError: for an option that this rule doesn't take.
    """
    known = _module(rule).OPTIONS
    for name in options or {}:
        if name not in known:
            raise UsageError(
                field="--set",
                problem="this model's answers take no such option",
                value=name,
                allowed=", ".join(known) or "none",
                fix=did_you_mean(name, known),
            )
    found: list[dict[str, Any]] = []
    for part in chunks(batch, BATCH):
        found += _module(rule).answer(rule, run, part, options or {})
    return found


def decode(rule: Rule, rows: NDArray[np.floating[Any]]) -> list[dict[str, Any]]:
    """Return one answer per row (N, S), as JSON values."""
    return list(_module(rule).decode(rule, rows))


def errors(rule: Rule, rows: NDArray[np.floating[Any]], target: NDArray[Any]) -> NDArray[np.float64] | None:
    """Return how wrong each sample is, (N,), or None where that means nothing."""
    found: NDArray[np.float64] | None = _module(rule).errors(rule, rows, target)
    return found


def _module(rule: Rule) -> ModuleType:
    return importlib.import_module(f"fmdist.tasks.decoding.{RULES[rule['rule']]}")
