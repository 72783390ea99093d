"""Outputs to answers, by a rule that travels with every artifact.

NumPy only: deployment needs no torch.

Shapes: B batch, K outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


def decode(rule: Mapping[str, Any], outputs_BK: NDArray[np.floating[Any]]) -> list[dict[str, Any]]:
    """Return one answer per row of ``outputs_BK`` (B, K).

    Args:
        rule: ``{"rule": "class", "names": [...]}`` for logits of exclusive classes (softmax);
            ``{"rule": "labels", "names": [...], "threshold": 0.5}`` for independent labels (sigmoid);
            ``{"rule": "value", "names": [...]}`` for numbers.
        outputs_BK: what the model returned.

    >>> decode({"rule": "value", "names": ["price"]}, np.array([[2.5]]))
    [{'values': {'price': 2.5}}]
    """
    names = rule["names"]
    if rule["rule"] == "value":
        return [{"values": _by_name(names, row)} for row in outputs_BK]
    if rule["rule"] == "labels":
        return [
            {
                "labels": [name for name, p in zip(names, row, strict=True) if p >= rule["threshold"]],
                "probabilities": _by_name(names, row),
            }
            for row in sigmoid(outputs_BK)
        ]
    return [
        {
            "label": names[int(row.argmax())],
            "probability": float(row.max()),
            "probabilities": _by_name(names, row),
        }
        for row in softmax(outputs_BK)
    ]


def softmax(logits_BK: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return probabilities (B, K) that sum to 1 over K, in float64."""
    shifted = np.exp(logits_BK.astype(np.float64) - logits_BK.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


def sigmoid(logits_BK: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return independent probabilities in (0, 1), of the same shape, in float64."""
    return np.asarray(0.5 * (1 + np.tanh(0.5 * logits_BK.astype(np.float64))))


def _by_name(names: list[str], row: NDArray[Any]) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, row, strict=True)}
