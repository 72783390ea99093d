"""Prompts to token ids, for models that were trained on windows of a running text. NumPy only.

Shapes: N prompts, T time.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fmdist.contracts import InputSpec, TargetSpec
from fmdist.data.preprocess import Preprocess, Raw
from fmdist.data.tokenizer import BEGIN, UNKNOWN, TextTokenizer
from fmdist.errors import DataError

logger = logging.getLogger(__name__)

PROMPT = np.dtype([("text", object)])
"""The type of raw rows."""


@dataclass(frozen=True)
class WindowPreprocess(Preprocess):
    """A text becomes `BEGIN` and its token ids; of one that is longer than `length` the end is kept."""

    kind: ClassVar[str] = "windows"

    length: int
    """Tokens that the model sees at most."""
    tokenizer: str
    """Fitted, as the tokenizers library's JSON."""

    @cached_property
    def text(self) -> TextTokenizer:
        """The tokenizer, ready for use."""
        return TextTokenizer(self.tokenizer)

    @property
    def inputs(self) -> tuple[InputSpec]:
        """``tokens``, (T,) int64, T at most `length`."""
        return (InputSpec("tokens", (None,), "int64", self.text.size, self.length),)

    @property
    def tokenizers(self) -> dict[str, str]:
        """The one tokenizer, of ``tokens``."""
        return {"tokens": self.tokenizer}

    def target(self, spec: TargetSpec) -> TargetSpec:
        """Return the target with the vocabulary's size."""
        return replace(spec, size=self.text.size)

    def fit(self, chunks: Iterable[Raw], normalize: bool) -> WindowPreprocess:
        """Return this: the tokenizer was fitted on the whole training text."""
        return self

    def __call__(self, raw: Raw) -> dict[str, NDArray[np.int64]]:
        """Return ``tokens`` (N, T), and ``target`` (N, T): the tokens that follow, 0 after a text's last.

        What the tokenizer doesn't know becomes its unknown token; a warning counts it.
        """
        if raw.dtype != PROMPT or raw.ndim != 1:
            raise DataError(
                field="tokens",
                problem="not rows of texts",
                value=f"{raw.dtype} {raw.shape}",
                allowed=f"{PROMPT} (N,)",
            )
        encoded = self.text.encode(list(raw["text"]))
        unknown = sum(int((ids == UNKNOWN).sum()) for ids in encoded)
        if unknown:
            logger.warning("%d token(s) are not in the vocabulary and are read as unknown", unknown)
        cut = sum(len(ids) + 1 > self.length for ids in encoded)
        if cut:
            logger.warning("%d text(s) are longer than %d tokens; the model sees their end", cut, self.length)
        texts = [np.concatenate([[BEGIN], ids])[-self.length :] for ids in encoded]
        tokens_NT = np.zeros((len(texts), max(map(len, texts), default=1)), np.int64)
        for row, ids in enumerate(texts):
            tokens_NT[row, : len(ids)] = ids
        return {"tokens": tokens_NT, "target": np.pad(tokens_NT[:, 1:], ((0, 0), (0, 1)))}

    @staticmethod
    def read_json(value: Mapping[str, Any]) -> WindowPreprocess:
        """Read the fields that `to_json` wrote."""
        return WindowPreprocess(value["length"], value["tokenizer"])
