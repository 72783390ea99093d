"""Greedy and beam search for the likeliest text that a model writes token by token.

Shapes: B sources, S and T time, V tokens of the vocabulary, W hypotheses of a beam,
H hypotheses that go on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fmdist.errors import UsageError
from fmdist.tasks.decoding.run import Run

BEGIN, END = 2, 3
"""The ids before a text and after it; no id below `END` is ever written."""


@dataclass(frozen=True)
class Search:
    """How texts are looked for; `from_options` reads and checks what a user asked for."""

    beam_width: int = 1
    """Hypotheses that are followed; 1 is greedy search."""
    length_penalty: float = 0.6
    """Alpha of Wu et al. 2016 (arXiv:1609.08144, equation 14): hypotheses are compared by their log
    probability over ((5 + length) / 6)^alpha; 0 compares probabilities, which favours short texts."""
    max_length: int = 100
    """Tokens after which a text ends without `END`."""

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Self:
        """Return the settings that ``options`` give by name.

        Raises:
            UsageError: for a value of the wrong type or out of range.
        """
        most = {"beam_width": 100, "length_penalty": 2, "max_length": 100_000}
        for field in fields(cls):
            whole = type(field.default) is int
            value, low, high = options.get(field.name, field.default), int(whole), most[field.name]
            fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
            if not fits or not low <= value <= high:
                raise UsageError(
                    field=field.name,
                    problem="not a value that texts can be looked for with",
                    value=value,
                    allowed=f"{'a whole number' if whole else 'a number'} from {low} to {high}",
                )
        return cls(**options)


def search_texts(
    run: Run, names: Sequence[str], source_BS: NDArray[np.int64], search: Search
) -> NDArray[np.int64]:
    """Return the ids of the best text for each source, (B, T), without `BEGIN`, padded with zeros.

    Ended hypotheses keep their place in the beam until W others are better. The model is run once for each
    token, on the hypotheses that have not ended; T is at most ``search.max_length``.

    Args:
        run: runs the model.
        names: of its inputs: source ids, and ids written so far.
        source_BS: padded with zeros.
        search: how to look.
    """
    batch, width = len(source_BS), search.beam_width
    row_B1 = np.arange(batch)[:, None]
    ids_BWT = np.full((batch, width, 1), BEGIN, np.int64)
    score_BW = np.full((batch, width), -np.inf)
    score_BW[:, 0] = 0.0  # at first all hypotheses are the same one
    ended_BW = np.zeros((batch, width), np.bool_)
    for _ in range(search.max_length):
        at_H, beam_H = np.nonzero(~ended_BW & np.isfinite(score_BW))
        if not len(at_H):
            break
        logits_HTV = run({names[0]: source_BS[at_H], names[1]: ids_BWT[at_H, beam_H]})
        log_p_HV = log_softmax(logits_HTV[:, -1].astype(np.float64))
        log_p_HV[:, :END] = -np.inf
        total_BWV = np.full((batch, width, log_p_HV.shape[1]), -np.inf)
        total_BWV[at_H, beam_H] = score_BW[at_H, beam_H, None] + log_p_HV
        total_BWV[:, :, 0] = np.where(ended_BW, score_BW, -np.inf)
        length_BW = (ids_BWT[:, :, 1:] != 0).sum(axis=2) + ~ended_BW
        ranked_BC = (total_BWV / penalty(length_BW, search.length_penalty)[:, :, None]).reshape(batch, -1)
        chosen_BW = _largest(ranked_BC, width)
        parent_BW, token_BW = np.divmod(chosen_BW, total_BWV.shape[2])
        score_BW = total_BWV[row_B1, parent_BW, token_BW]
        ended_BW = ended_BW[row_B1, parent_BW] | (token_BW == END)
        ids_BWT = np.concatenate([ids_BWT[row_B1, parent_BW], token_BW[:, :, None]], axis=2)
    return ids_BWT[:, 0, 1:]


def penalty(length: NDArray[np.int64], alpha: float) -> NDArray[np.float64]:
    """Return what log probabilities of texts of these lengths are divided by; see `Search.length_penalty`.

    >>> penalty(np.array([1, 7]), 1.0).tolist()
    [1.0, 2.0]
    """
    return np.asarray(((5.0 + length) / 6.0) ** alpha)


def log_softmax(logits: NDArray[Any]) -> NDArray[Any]:
    """Return log probabilities over the last axis, of the same shape and type."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def _largest(values_BC: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Return the positions (B, count) of each row's largest values, the largest first."""
    if count == 1:
        return np.asarray(values_BC.argmax(axis=1)[:, None])
    found = np.argpartition(-values_BC, count - 1, axis=1)[:, :count]
    order = np.argsort(-np.take_along_axis(values_BC, found, axis=1), axis=1, kind="stable")
    return np.asarray(np.take_along_axis(found, order, axis=1))
