"""Texts written from other texts, such as translations.

``{"rule": "translate", "inputs": ["source", "prefix"], "tokenizer": "{...}", "vocabulary": 500,
"label_smoothing": 0.0, "beam_width": 1, "length_penalty": 0.6, "max_length": 40}``. The model maps source ids
(B, S) and the ids written so far (B, T), of which the first is `beam.BEGIN`, to logits (B, T, V) of the token
after each. ``tokenizer`` is the target's, as the tokenizers library's JSON; ``vocabulary`` is V.

Shapes: N samples, B batch, S and T time, V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmdist.tasks.decoding.beam import Search, log_softmax, search_texts
from fmdist.tasks.decoding.language import written_texts
from fmdist.tasks.decoding.run import Arrays, Run, chunks, take

OPTIONS = ("beam_width", "length_penalty", "max_length")
"""What `answer` can be told; `fmdist.tasks.decoding.beam.Search` says what each means."""

LOSS, TOKENS, TEXT = range(3)
"""The columns of `rows`; the written ids start at `TEXT`."""

LOGITS = 2**24
"""Most numbers that one call of the model may return, unless a single sample has more."""


def feed(rule: Mapping[str, Any], batch: Arrays) -> dict[str, NDArray[Any]]:
    """Return the inputs of one call: the sources, and the true targets up to each token."""
    return take(batch, rule["inputs"])


def rows(rule: Mapping[str, Any], run: Run, batch: Arrays) -> NDArray[np.float32]:
    """Return (N, 2 + max_length): loss, tokens of the true target, and the ids that the model wrote.

    The loss is summed over the target's tokens, in nats, given the true ones before each; it and the number
    are 0 where the batch has no ``target``. Written ids end in `beam.END` and padding.
    """
    search = Search.from_options({name: rule[name] for name in OPTIONS})
    columns = []
    size = max(search.max_length, batch.get("target", np.zeros((0, 0))).shape[1])
    for part in chunks(batch, max(1, LOGITS // (search.beam_width * size * rule["vocabulary"]))):
        written_BT = search_texts(run, rule["inputs"], part[rule["inputs"][0]], search)
        found = np.zeros((len(written_BT), TEXT + search.max_length), np.float32)
        found[:, TEXT : TEXT + written_BT.shape[1]] = written_BT
        if "target" in part:
            found[:, :TEXT] = _losses(rule, run, part)
        columns.append(found)
    return np.concatenate(columns)


def decode(rule: Mapping[str, Any], rows_NS: NDArray[np.floating[Any]]) -> list[dict[str, Any]]:
    """Return the ``text`` that was written for each source."""
    written = rows_NS[:, TEXT:].astype(np.int64).tolist()
    return [{"text": text} for text in written_texts(rule["tokenizer"], written)]


def answer(
    rule: Mapping[str, Any], run: Run, batch: Arrays, options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return `decode` of what was written with these options, or the rule's where none is given.

    Raises:
        UsageError: for an option with a wrong value.
    """
    changed = {**rule, **options}
    return decode(changed, rows(changed, run, take(batch, rule["inputs"][:1])))


def errors(
    rule: Mapping[str, Any], rows_NS: NDArray[np.floating[Any]], target: NDArray[Any]
) -> NDArray[np.float64]:
    """Return how unlikely the model found each true target, (N,): its loss per token."""
    return np.asarray(rows_NS[:, LOSS].astype(np.float64) / np.maximum(rows_NS[:, TOKENS], 1))


def _losses(rule: Mapping[str, Any], run: Run, batch: Arrays) -> NDArray[np.float64]:
    """Return (B, 2): the summed loss as torch's cross_entropy smooths it, and the number of tokens."""
    target_BT, share = batch["target"], rule["label_smoothing"]
    log_p_BTV = log_softmax(run(feed(rule, batch)))
    wanted_BT = np.take_along_axis(log_p_BTV, target_BT[:, :, None], axis=2)[:, :, 0]
    loss_BT = -(1 - share) * wanted_BT - share * log_p_BTV.mean(axis=2)
    scored_BT = target_BT != 0
    return np.stack([(loss_BT * scored_BT).sum(axis=1, dtype=np.float64), scored_BT.sum(axis=1)], axis=1)
