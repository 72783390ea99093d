"""Classes, labels and values: the model's outputs (B, K) are the rows.

``{"rule": "class", "inputs": [...], "names": [...]}`` for logits of exclusive classes (softmax);
``{"rule": "labels", ..., "threshold": 0.5}`` for independent labels (sigmoid); ``{"rule": "value", ...}`` for
numbers.

Shapes: B batch, K outputs, N samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmdist.tasks.decoding.run import Arrays, Run, take

OPTIONS: tuple[str, ...] = ()
"""What `answer` can be told."""


def feed(rule: Mapping[str, Any], batch: Arrays) -> dict[str, NDArray[Any]]:
    """Return the inputs of one call: the data's."""
    return take(batch, rule["inputs"])


def rows(rule: Mapping[str, Any], run: Run, batch: Arrays) -> NDArray[np.float32]:
    """Return the outputs, (N, K)."""
    return run(feed(rule, batch))


def answer(
    rule: Mapping[str, Any], run: Run, batch: Arrays, options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return `decode` of the outputs."""
    return decode(rule, rows(rule, run, batch))


def decode(rule: Mapping[str, Any], outputs_BK: NDArray[np.floating[Any]]) -> list[dict[str, Any]]:
    """Return one answer per row of ``outputs_BK`` (B, K).

    >>> decode({"rule": "value", "names": ["price"]}, np.array([[2.5]]))
    [{'values': {'price': 2.5}}]
    """
    names = rule["names"]
    if rule["rule"] == "value":
        return [{"values": _by_name(names, row)} for row in outputs_BK]
    if rule["rule"] == "labels":
        return [
            {
                "labels": [name for name, is_given in zip(names, chosen, strict=True) if is_given],
                "probabilities": _by_name(names, row),
            }
            for row, chosen in zip(sigmoid(outputs_BK), given(outputs_BK, rule["threshold"]), strict=True)
        ]
    return [
        {
            "label": names[int(row.argmax())],
            "probability": float(row.max()),
            "probabilities": _by_name(names, row),
        }
        for row in softmax(outputs_BK)
    ]


def errors(
    rule: Mapping[str, Any], outputs_NK: NDArray[np.floating[Any]], target: NDArray[Any]
) -> NDArray[np.float64]:
    """Return how wrong each sample is, (N,): 1 - p of its class, or the mean absolute error."""
    if rule["rule"] == "class":
        return np.asarray(1 - softmax(outputs_NK)[np.arange(len(target)), target])
    answers = sigmoid(outputs_NK) if rule["rule"] == "labels" else outputs_NK
    return np.asarray(np.abs(answers - target).mean(axis=1), np.float64)


def given(logits_BK: NDArray[np.floating[Any]], threshold: float) -> NDArray[np.bool_]:
    """Return which labels a sample gets (B, K): those whose probability is ``threshold`` or more.

    >>> given(np.array([[0.0, 0.4, -0.1]]), 0.5).tolist()
    [[True, True, False]]
    """
    return np.asarray(sigmoid(logits_BK) >= threshold)


def softmax(logits_BK: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return probabilities (B, K) that sum to 1 over K, in float64."""
    shifted = np.exp(logits_BK.astype(np.float64) - logits_BK.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def sigmoid(logits_BK: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return independent probabilities in (0, 1), of the same shape, in float64."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits_BK.astype(np.float64))))


def _by_name(names: list[str], row: NDArray[Any]) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, row, strict=True)}
