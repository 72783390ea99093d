"""Texts to token ids; NumPy only, training and `fmdist predict` share it.

Shapes: N texts, T time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fmdist.contracts import InputSpec
from fmdist.data.preprocess import Preprocess, Raw
from fmdist.data.tokenizer import PADDING, UNKNOWN, TextTokenizer, fit_tokenizer
from fmdist.errors import DataError

if TYPE_CHECKING:
    from fmdist.data.tokenizer_config import TokenizerConfig

TEXT = np.dtype([("text", object)])
"""The type of raw rows."""


class Losses(NamedTuple):
    """What the model can't see of some texts."""

    tokens: int
    """All tokens of the texts."""
    unknown: int
    """Tokens that are not in the vocabulary."""
    cut: int
    """Texts with more tokens than the model reads."""


@dataclass(frozen=True)
class TextPreprocess(Preprocess):
    """A text becomes the ids of its first `max_length` tokens."""

    kind: ClassVar[str] = "text"

    max_length: int
    """Most tokens of a text."""
    on_long: Literal["cut", "fail"] = "cut"
    """What to do with a text of more tokens."""
    column: str = "text"
    """The column that holds the texts in tables of the user."""
    delimiter: str | None = None
    """What separates the cells of the user's CSV files; None for a tab in ``.tsv`` files, else a comma."""
    tokenizer: str = ""
    """Fitted, as the tokenizers library's JSON; empty before `fit`."""
    config: TokenizerConfig | None = None
    """What to fit; None after `fit`."""

    @cached_property
    def text(self) -> TextTokenizer:
        """The tokenizer, ready for use."""
        return TextTokenizer(self.tokenizer)

    @property
    def inputs(self) -> tuple[InputSpec]:
        """``tokens``, (T,) int64, T at most `max_length`."""
        return (InputSpec("tokens", (None,), "int64", self.text.size, self.max_length),)

    @property
    def tokenizers(self) -> dict[str, str]:
        """The one tokenizer, of ``tokens``."""
        return {"tokens": self.tokenizer}

    def fit(self, chunks: Iterable[Raw], normalize: bool) -> TextPreprocess:
        """Return a copy with a tokenizer that was fitted on these texts."""
        assert self.config is not None
        texts = (text for chunk in chunks for text in chunk["text"])
        return replace(self, tokenizer=fit_tokenizer(self.config, texts), config=None)

    def __call__(self, raw: Raw) -> dict[str, NDArray[np.int64]]:
        """Return ``tokens`` (N, T), padded with zeros to the longest of these texts.

        Raises:
            DataError: if ``raw`` isn't texts, or one of them is too long and `on_long` is ``fail``.
        """
        rows = [ids[: self.max_length] for ids in self._encode(raw)]
        tokens_NT = np.full((len(rows), max(map(len, rows), default=1)), PADDING, np.int64)
        for row, ids in enumerate(rows):
            tokens_NT[row, : len(ids)] = ids
        return {"tokens": tokens_NT}

    def losses(self, raw: Raw) -> Losses:
        """Return what `__call__` leaves out of these texts; raises as it does."""
        rows = self._encode(raw)
        return Losses(
            tokens=sum(map(len, rows)),
            unknown=sum(int((ids == UNKNOWN).sum()) for ids in rows),
            cut=sum(len(ids) > self.max_length for ids in rows),
        )

    def _encode(self, raw: Raw) -> list[NDArray[np.int64]]:
        if raw.dtype != TEXT or raw.ndim != 1:
            raise DataError(
                field="tokens",
                problem="not rows of texts",
                value=f"{raw.dtype} {raw.shape}",
                allowed=f"{TEXT} (N,)",
            )
        # A text of nothing but blanks may have no token at all; a row needs one.
        rows = [ids if len(ids) else np.array([UNKNOWN]) for ids in self.text.encode(list(raw["text"]))]
        if self.on_long == "fail":
            for ids, text in zip(rows, raw["text"], strict=True):
                if len(ids) > self.max_length:
                    raise DataError(
                        field="data.max_length",
                        problem=f"a text has {len(ids)} tokens",
                        value=text,
                        allowed=f"at most {self.max_length}",
                        fix="raise data.max_length, shorten the text, or set data.on_long to cut",
                    )
        return rows

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values of the fitted preprocessing; `from_json` reads them back."""
        return {
            "kind": self.kind,
            **{name: value for name, value in asdict(self).items() if name != "config"},
        }

    @staticmethod
    def read_json(value: Mapping[str, Any]) -> TextPreprocess:
        """Read the fields that `to_json` wrote."""
        return TextPreprocess(**value)
