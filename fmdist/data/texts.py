"""What the kinds of labelled texts share: their options, and the way from cells to `RawData`."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from fmdist.contracts import TargetSpec
from fmdist.data.base import DataConfig
from fmdist.data.preprocess import CHUNK
from fmdist.data.raw import ArrayValues, BadRecord, RawData
from fmdist.data.text_preprocess import TEXT, TextPreprocess
from fmdist.data.tokenizer_config import TokenizerConfig
from fmdist.errors import DataError

if TYPE_CHECKING:
    from fmdist.data.splits import DataSplits, Samples

logger = logging.getLogger(__name__)

_MIN_REPEATS = 2
"""A label column with fewer rows per distinct value than this, on average, holds no classes."""


class Labelled(NamedTuple):
    """One text as it was read."""

    text: str
    label: str
    source: str
    split: str = "train"


class TextConfig(DataConfig):
    """The fields that all kinds of labelled texts share."""

    modality: ClassVar[str] = "text"

    tokenizer: TokenizerConfig = Field(default_factory=TokenizerConfig)
    """What the tokens are; fitted on the training split."""
    max_length: int = Field(default=256, ge=1)
    """Most tokens of a text that the model reads."""
    on_long: Literal["cut", "fail"] = "cut"
    """Texts of more tokens: cut off what follows, and count them in the run's record; or stop."""

    @model_validator(mode="after")
    def _nothing_to_normalize(self) -> Self:
        if not self.normalize:
            message = f"{self.kind()} has no numbers to normalize; remove data.normalize"
            raise ValueError(message)
        return self

    def build(self, seed: int, quarantine: Path | None = None) -> DataSplits:
        """Read, clean, split and tokenize; see `DataConfig.build`."""
        splits = super().build(seed, quarantine)
        preprocess = splits.preprocess
        assert isinstance(preprocess, TextPreprocess)
        parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
        splits.record["tokens"] = {name: self._losses(part, name, preprocess) for name, part in parts.items()}
        return splits

    def _losses(self, part: Samples, name: str, preprocess: TextPreprocess) -> dict[str, int]:
        """Count what the model doesn't see of a split, and warn of texts that are cut."""
        total = {"tokens": 0, "unknown": 0, "cut": 0}
        for start in range(0, len(part), CHUNK):
            rows = np.arange(start, min(start + CHUNK, len(part)))
            for key, value in preprocess.losses(part.raw(rows))._asdict().items():
                total[key] += value
        if total["cut"]:
            logger.warning(
                "%s split: %d of %d texts are longer than %d tokens and were cut (data.max_length)",
                name,
                total["cut"],
                len(part),
                self.max_length,
            )
        return total

    def to_raw(
        self,
        found: Sequence[Labelled],
        bad: Sequence[BadRecord],
        preprocess: TextPreprocess,
        names: Sequence[str] | None = None,
    ) -> RawData:
        """Return the rows that have a text and a label; the others are bad records.

        Args:
            found: all texts that could be read.
            bad: records that could not.
            preprocess: not fitted yet.
            names: of the classes, in order; None takes the labels found, in alphabetical or numeric order.

        Raises:
            DataError: if the labels are no classes: nearly every text has one of its own.
        """
        reasons = {row: reason for row, item in enumerate(found) if (reason := _unusable(item))}
        good = [item for row, item in enumerate(found) if row not in reasons]
        known = tuple(_ordered({item.label for item in good}) if names is None else names)
        if len(known) * _MIN_REPEATS > len(good) > 0 and len(known) > _MIN_REPEATS:
            raise DataError(
                field="data",
                problem=f"{len(known)} distinct labels in {len(good)} texts",
                value=known[0],
                allowed=f"for a class: {_MIN_REPEATS} texts or more for each, on average",
                fix="name the column that holds the classes",
            )
        code = {name: position for position, name in enumerate(known)}
        texts = np.empty(len(good), TEXT)
        texts["text"] = [item.text for item in good]
        return RawData(
            values=ArrayValues(texts),
            targets=np.array([code[item.label] for item in good], np.int64),
            target=TargetSpec("class", known),
            preprocess=preprocess,
            sources=[item.source for item in good],
            bad=[*bad, *(BadRecord(found[row].source, reason) for row, reason in reasons.items())],
            published=np.array([item.split for item in good], dtype=np.str_),
        )

    def unfitted(self, column: str = "text", delimiter: str | None = None) -> TextPreprocess:
        """Return the preprocessing of this configuration, not fitted yet."""
        return TextPreprocess(
            self.max_length, self.on_long, column=column, delimiter=delimiter, config=self.tokenizer
        )


def _unusable(item: Labelled) -> str:
    if not item.text.strip():
        return "an empty text"
    return "" if item.label.strip() else "no label"


def _ordered(labels: Iterable[str]) -> list[str]:
    """Return labels by number, and those of one number by text; by text alone if some are no numbers."""
    texts = sorted(labels)
    try:
        numbers = {text: float(text) for text in texts}
    except ValueError:
        return texts
    if any(map(math.isnan, numbers.values())):  # nan is neither before nor after a number
        return texts
    return sorted(texts, key=numbers.__getitem__)
