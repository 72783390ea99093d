"""Language models: how likely a text is, and texts that go on from a prompt.

``{"rule": "likelihood", "input": "tokens", "context": 256, "characters": [0, ...], "tokenizer": "{...}"}``.
The model maps token ids (B, T) to logits (B, T, V) of the token that follows each; ``context`` is the longest
T that it takes, ``characters`` (V,) says how many characters a token stands for, and ``tokenizer`` is the
tokenizers library's JSON.

Shapes: N windows of text, B batch, T time, V tokens of the vocabulary.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmdist import component
from fmdist.tasks.decoding.run import Arrays, Run, chunks, take
from fmdist.tasks.decoding.sampling import Sampling, probabilities

OPTIONS = ("temperature", "top_k", "top_p", "max_tokens", "seed")
"""What `answer` can be told; `fmdist.tasks.decoding.sampling.Sampling` says what each means."""

NLL, TOKENS, CHARACTERS, CORRECT = range(4)
"""The columns of `rows`."""

END = 3
"""The id at which a text ends; the ids below it stand for no text and are never generated."""

LOGITS = 2**24
"""Most numbers that one call of the model may return in `rows`, unless a single window has more."""


def feed(rule: Mapping[str, Any], batch: Arrays) -> dict[str, NDArray[Any]]:
    """Return the inputs of one call: the windows' tokens."""
    return take(batch, [rule["input"]])


def rows(rule: Mapping[str, Any], run: Run, batch: Arrays) -> NDArray[np.float32]:
    """Return what metrics sum, (N, 4), over each window's scored tokens, those whose target isn't 0.

    Columns: negative log-likelihood in nats, number of tokens, number of characters, tokens that were the
    likeliest.
    """
    windows = max(1, LOGITS // (batch["target"].shape[1] * len(rule["characters"])))
    return np.concatenate([_rows(rule, run, part) for part in chunks(batch, windows)])


def _rows(rule: Mapping[str, Any], run: Run, batch: Arrays) -> NDArray[np.float32]:
    target_BT = batch["target"]
    scored_BT = target_BT != 0
    logits_BTV = run(feed(rule, batch))
    top_BT = logits_BTV.max(axis=2)
    wanted_BT = np.take_along_axis(logits_BTV, target_BT[:, :, None], axis=2)[:, :, 0]
    total_BT = np.exp(logits_BTV - top_BT[:, :, None]).sum(axis=2)
    nll_BT = (np.log(total_BT) + top_BT - wanted_BT).astype(np.float64)
    right_BT = logits_BTV.argmax(axis=2) == target_BT
    columns = (
        (nll_BT * scored_BT).sum(axis=1),
        scored_BT.sum(axis=1),
        (np.array(rule["characters"])[target_BT] * scored_BT).sum(axis=1),
        (right_BT & scored_BT).sum(axis=1),
    )
    return np.stack(columns, axis=1).astype(np.float32)


def decode(rule: Mapping[str, Any], rows_NS: NDArray[np.floating[Any]]) -> list[dict[str, Any]]:
    """Return for each window its ``bits_per_character``, ``perplexity`` per token and ``accuracy``."""
    return [
        {
            "bits_per_character": float(row[NLL] / math.log(2) / max(row[CHARACTERS], 1)),
            "perplexity": math.exp(row[NLL] / max(row[TOKENS], 1)),
            "accuracy": float(row[CORRECT] / max(row[TOKENS], 1)),
        }
        for row in rows_NS.astype(np.float64)
    ]


def errors(
    rule: Mapping[str, Any], rows_NS: NDArray[np.floating[Any]], target: NDArray[Any]
) -> NDArray[np.float64]:
    """Return how hard each window was, (N,): bits per character."""
    return np.array([scores["bits_per_character"] for scores in decode(rule, rows_NS)], np.float64)


def answer(
    rule: Mapping[str, Any], run: Run, batch: Arrays, options: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Return a text that goes on from each prompt: ``text``, without the prompt, and its ``tokens``.

    Draws are keyed by (seed, index), so a prompt's text doesn't depend on the others'. Where prompt and text
    outgrow the model's context, it sees the end of them.

    Args:
        rule: as above.
        run: runs the model; called once for each generated token, on growing texts.
        batch: prompts, token ids (B, T), padded with 0 at the end, and ``index``.
        options: fields of `fmdist.tasks.decoding.sampling.Sampling` by name.

    Raises:
        UsageError: for an option with a wrong value.
    """
    sampling = Sampling.from_options(dict(options))
    name, context = rule["input"], rule["context"]
    prompts = [row[row != 0].tolist() for row in batch[name]]
    texts = [list(prompt) for prompt in prompts]
    randoms = [
        np.random.Generator(np.random.Philox(key=np.array([sampling.seed, index], np.uint64)))
        for index in batch["index"]
    ]
    going = list(range(len(texts)))
    for _ in range(sampling.max_tokens):
        seen = [texts[row][-context:] for row in going]
        logits_BTV = run({name: _padded(seen)})
        for position, row in enumerate(going):
            logits_V = logits_BTV[position, len(seen[position]) - 1]
            share_V = probabilities(np.where(np.arange(len(logits_V)) < END, -np.inf, logits_V), sampling)
            texts[row].append(int(randoms[row].choice(len(share_V), p=share_V)))
        going = [row for row in going if texts[row][-1] != END]
        if not going:
            break
    added = [text[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)]
    written = written_texts(rule["tokenizer"], added)
    return [{"text": text, "tokens": len(ids)} for text, ids in zip(written, added, strict=True)]


def _padded(texts: list[list[int]]) -> NDArray[np.int64]:
    tokens_BT = np.zeros((len(texts), max(map(len, texts))), np.int64)
    for row, text in enumerate(texts):
        tokens_BT[row, : len(text)] = text
    return tokens_BT


def written_texts(tokenizer: str, texts: list[list[int]]) -> list[str]:
    """Return token ids as texts, without the special tokens."""
    component.require("text", needed_by="writing tokens as text")
    from tokenizers import Tokenizer

    library = Tokenizer.from_str(tokenizer)
    return [str(library.decode([token for token in text if token > END])) for text in texts]


def token_characters(tokenizer: str) -> list[int]:
    """Return how many characters each token stands for, (V,), so that bits can be counted per character.

    Exact for characters (an unknown one counts as 1) and for byte-level pieces, where a character of several
    bytes counts with its first. A word counts with one space beside its own characters, which is approximate.
    """
    description = json.loads(tokenizer)
    vocabulary: dict[str, int] = description["model"]["vocab"]
    before = description["pre_tokenizer"]["type"]
    counts = [0] * len(vocabulary)
    for text, token in vocabulary.items():
        if token > END:
            length = sum(map(_starts_character, text)) if before == "ByteLevel" else len(text)
            counts[token] = length + (before == "Whitespace")
    counts[1] = 1
    return counts


def _starts_character(symbol: str) -> bool:
    """Tell whether a byte is no continuation byte (0x80 to 0xBF) of UTF-8.

    Byte-level tokenizers write those that Latin-1 can't print as U+0122 to U+0143, the others as they are.
    """
    return not ("\xa1" <= symbol <= "\xbf" or "\u0122" <= symbol <= "\u0143")
