"""Pairs of texts, such as a sentence and its translation."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from pydantic import Field, model_validator

from fmdist.contracts import TargetSpec
from fmdist.data.base import DataConfig
from fmdist.data.config import Location
from fmdist.data.pair_preprocess import PAIR, PairPreprocess
from fmdist.data.raw import ArrayValues, BadRecord, RawData, digest
from fmdist.data.text_inputs import read_text_file
from fmdist.data.text_rows import TextRows, read_columns
from fmdist.data.tokenizer_config import TokenizerConfig
from fmdist.errors import DataError

REQUIRES = ("text",)


class Config(DataConfig):
    """Two text files whose lines belong together, or two columns of a table.

    A source is in one split only. Of several targets of one source the first is kept (data.clean.duplicates).
    """

    modality: ClassVar[str] = "pair"

    source: str
    """What to read from: a UTF-8 file with one text a line, or with `path` the name of a column."""
    target: str
    """What to write: a file whose lines belong to those of `source`, or a column."""
    path: Location | None = None
    """A table: ``.csv``, ``.tsv``, ``.jsonl`` or ``.parquet``; null for two text files."""
    tokenizer: TokenizerConfig = Field(default_factory=lambda: TokenizerConfig(kind="bpe"))
    """How texts become tokens; fitted for source and target apart, unless `shared`."""
    target_tokenizer: TokenizerConfig | None = None
    """How targets become tokens, if otherwise; null for the same settings."""
    shared: bool = False
    """One vocabulary for source and target, for languages of one script."""
    max_length: int = Field(default=256, ge=2)
    """Most tokens of a text, the one that ends it included; what follows is cut off, and counted."""

    @model_validator(mode="after")
    def _one_tokenizer_if_shared(self) -> Self:
        if self.shared and self.target_tokenizer is not None:
            message = "with shared there is one tokenizer; remove target_tokenizer"
            raise ValueError(message)
        return self

    def read(self) -> RawData:
        """Return the pairs; those with an empty side are bad records."""
        found = self._lines() if self.path is None else read_columns(self.path, [self.source, self.target])
        bad = list(found.bad)
        rows, sources = [], []
        for where, pair in zip(found.sources, found.rows, strict=True):
            empty = [side for side, text in zip(("source", "target"), pair, strict=True) if not text.strip()]
            if empty:
                bad.append(BadRecord(where, f"an empty {' and '.join(empty)}"))
            else:
                rows.append(pair)
                sources.append(where)
        pairs = np.empty(len(rows), PAIR)
        pairs["source"] = [source for source, _ in rows]
        pairs["target"] = [target for _, target in rows]
        return RawData(
            values=_Pairs(pairs),
            # Stands for the texts, which only fitted tokenizers make ids of: tells equal from different ones.
            targets=np.array([[_number(target)] for _, target in rows], np.int64).reshape(-1, 1),
            target=TargetSpec("tokens"),
            preprocess=PairPreprocess(
                self.max_length, "source" if self.path is None else self.source, configs=self._tokenizers()
            ),
            sources=sources,
            bad=bad,
        )

    def _tokenizers(self) -> tuple[TokenizerConfig, TokenizerConfig | None]:
        return self.tokenizer, None if self.shared else self.target_tokenizer or self.tokenizer

    def _lines(self) -> TextRows:
        first, second = _lines_of(Path(self.source)), _lines_of(Path(self.target))
        if len(first) != len(second):
            raise DataError(
                field="data.target",
                problem=f"{self.target} has {len(second)} lines and {self.source} has {len(first)}",
                allowed="files whose lines belong together",
                fix="a line is missing, or a text has a line break in it; mend the files",
            )
        return TextRows(
            rows=list(zip(first, second, strict=True)),
            sources=[f"{self.source}:{number}" for number in range(1, len(first) + 1)],
            bad=[],
        )


class _Pairs(ArrayValues):
    """Pairs of one source are copies of each other, so that it can't be both trained on and scored on."""

    def digests(self) -> list[bytes]:
        return [digest(unicodedata.normalize("NFC", source).encode()) for source in self.array["source"]]


def _number(text: str) -> int:
    return int.from_bytes(digest(text.encode())[:8], "little", signed=True)


def _lines_of(path: Path) -> list[str]:
    # Not splitlines(), which also ends lines at characters that a text may hold.
    lines = read_text_file(path).removesuffix("\n").split("\n")
    if lines == [""]:
        raise DataError(field=str(path), problem="the file is empty", allowed="one text a line")
    return [line.removesuffix("\r") for line in lines]
