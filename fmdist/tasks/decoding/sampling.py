"""Choosing the next token of a generated text.

Shapes: V tokens of the vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fmdist.errors import UsageError


@dataclass(frozen=True)
class Sampling:
    """How text is generated; `from_options` reads and checks what a user asked for."""

    temperature: float = 1.0
    """Divides the logits: below 1 likely tokens become likelier still, at 0 always the likeliest is taken."""
    top_k: int = 0
    """Choose among this many of the likeliest tokens; 0 for all."""
    top_p: float = 1.0
    """Choose among the likeliest tokens that together reach this probability, in (0, 1]."""
    max_tokens: int = 200
    """Tokens to generate at most."""
    seed: int = 0
    """Keys the draws, together with the prompt's position: 0 is the first."""

    @classmethod
    def from_options(cls, options: dict[str, Any]) -> Self:
        """Return the settings that ``options`` give by name.

        Raises:
            UsageError: for a value of the wrong type or out of range.
        """
        ranges: dict[str, tuple[float, float]] = {
            "temperature": (0, 100),
            "top_k": (0, 2**31),
            "top_p": (1e-9, 1),
            "max_tokens": (1, 1_000_000),
            "seed": (0, 2**63 - 1),
        }
        types = {field.name: type(field.default) for field in fields(cls)}
        for name, value in options.items():
            low, high = ranges[name]
            whole = types[name] is int
            fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
            if not fits or not low <= value <= high:
                raise UsageError(
                    field=name,
                    problem="not a value that text can be generated with",
                    value=value,
                    allowed=f"{'a whole number' if whole else 'a number'} from {low:g} to {high:g}",
                )
        return cls(**options)


def probabilities(logits_V: NDArray[np.floating[Any]], sampling: Sampling) -> NDArray[np.float64]:
    """Return the probabilities (V,) by which the next token is drawn.

    Temperature first, then the `top_k` likeliest tokens (Fan et al. 2018, arXiv:1805.04833), then the
    nucleus: the fewest of the likeliest tokens whose probability reaches `top_p` (Holtzman et al. 2020,
    arXiv:1904.09751). Of equally likely tokens the one with the smaller id comes first.

    >>> logits = np.log([0.5, 0.3, 0.15, 0.05])
    >>> probabilities(logits, Sampling(top_k=2)).round(3).tolist()
    [0.625, 0.375, 0.0, 0.0]
    >>> probabilities(logits, Sampling(top_p=0.9)).round(3).tolist()
    [0.526, 0.316, 0.158, 0.0]
    """
    order_V = np.argsort(-logits_V, kind="stable")
    if sampling.temperature == 0:
        chosen_V = np.zeros(len(logits_V))
        chosen_V[order_V[0]] = 1.0
        return chosen_V
    scaled_V = (logits_V.astype(np.float64) - logits_V[order_V[0]]) / sampling.temperature
    chosen_V = np.exp(scaled_V)
    if sampling.top_k:
        chosen_V[order_V[sampling.top_k :]] = 0.0
    chosen_V /= chosen_V.sum()
    # Before a token of the nucleus, less than `top_p` has been reached; so the likeliest is always in it.
    reached_V = np.cumsum(chosen_V[order_V])
    before_V = np.concatenate([[0.0], reached_V[:-1]])
    chosen_V[order_V[before_V >= sampling.top_p]] = 0.0
    return np.asarray(chosen_V / chosen_V.sum())
