"""One running text from a file, or from several, for language models."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from fmdist.contracts import DataSpec, TargetSpec
from fmdist.data.base import DataConfig
from fmdist.data.config import CleanConfig, Fraction, Location, SplitConfig
from fmdist.data.tokenizer import BEGIN, UNKNOWN, fit_tokenizer
from fmdist.data.tokenizer_config import TokenizerConfig
from fmdist.data.window_preprocess import WindowPreprocess
from fmdist.errors import DataError

if TYPE_CHECKING:
    from fmdist.data.splits import DataSplits

REQUIRES = ("text",)

logger = logging.getLogger(__name__)


class TextSplitConfig(SplitConfig):
    """Shares of the text's characters, in the text's order; `stratify` and `seed` change nothing."""

    train: Fraction = 0.8
    """Share to train on, the text's beginning."""
    validation: Fraction = 0.1
    """Share that chooses the best checkpoint, after the first."""
    test: Fraction = 0.1
    """Share for the final score, the text's end."""
    stratify: bool = False
    """A running text has no classes."""


class Config(DataConfig):
    """The text's first part is for training, its last for the test; the tokenizer is fitted on the first.

    Training windows are cut at other places in every epoch; evaluation scores every token exactly once.
    """

    modality: ClassVar[str] = "windows"

    path: Location | Annotated[list[Location], Field(min_length=1)]
    """A UTF-8 text file; of several, one text is made in this order, each beginning a new line."""
    tokenizer: TokenizerConfig = Field(default_factory=lambda: TokenizerConfig(kind="character"))
    """What the text's tokens are."""
    length: int = Field(default=256, ge=2)
    """Tokens of a training window: how far back the model learns to look."""
    evaluation_length: int | None = Field(default=None, ge=2)
    """Tokens of an evaluation window, `length` or more, and what the model sees at most, also where it
    generates text; null: as many as `length`."""
    context: int = Field(default=64, ge=0)
    """Tokens of an evaluation window that are given and not scored, less than it holds."""
    split: TextSplitConfig = Field(default_factory=TextSplitConfig)
    """Where the text is cut."""

    @property
    def _longest(self) -> int:
        return self.evaluation_length or self.length

    @model_validator(mode="after")
    def _fits_a_running_text(self) -> Self:
        if self._longest < self.length:
            message = (
                f"evaluation_length ({self._longest}) must be at least length ({self.length}), since a model "
                "takes no longer windows than it is evaluated on; raise it or remove it, or lower data.length"
            )
            raise ValueError(message)
        if self.context >= self._longest:
            message = f"context ({self.context}) must be less than an evaluation window ({self._longest})"
            raise ValueError(message)
        for name, stated, idle in (
            ("clean", self.clean, CleanConfig()),
            ("normalize", self.normalize, True),
        ):
            if stated != idle:
                message = f"a running text has no rows or numbers; remove data.{name}"
                raise ValueError(message)
        return self

    def build(self, seed: int, quarantine: Path | None = None) -> DataSplits:
        """Read the text, split it, fit the tokenizer and cut windows; see `DataConfig.build`.

        Raises:
            DataError: if a file can't be read or a split is too short to make a window of.
        """
        # torch is loaded when data is, not when a recipe is validated
        from fmdist.data.splits import DataSplits
        from fmdist.data.windows import WindowSplit

        text = self._read()
        parts = _parts(text, self.split)
        preprocess = WindowPreprocess(self._longest, fit_tokenizer(self.tokenizer, [parts["train"]]))
        tokens = {
            name: np.concatenate([[BEGIN], preprocess.text.encode([part])[0]]) for name, part in parts.items()
        }
        self._check(tokens)
        train = WindowSplit.training("train", tokens["train"], preprocess, self.length, seed)
        validation = WindowSplit.evaluation("validation", tokens["validation"], preprocess, self.context)
        test = WindowSplit.evaluation("test", tokens["test"], preprocess, self.context)
        target = preprocess.target(TargetSpec("tokens"))
        return DataSplits(
            spec=DataSpec(preprocess.inputs, target, len(train), tokenizers=preprocess.tokenizers),
            train=train,
            validation=validation,
            test=test,
            preprocess=preprocess,
            record={
                "sizes": {"train": len(train), "validation": len(validation), "test": len(test)},
                "characters": {name: len(part) for name, part in parts.items()},
                "tokens": {name: len(ids) - 1 for name, ids in tokens.items()},
                "unknown": {name: int((ids == UNKNOWN).sum()) for name, ids in tokens.items()},
                "vocabulary": preprocess.text.size,
                "sha256": {name: _hash(part) for name, part in parts.items()},
                "sha256_text": _hash(text),
            },
        )

    def _read(self) -> str:
        texts = [_read_text(path) for path in (self.path if isinstance(self.path, list) else [self.path])]
        return "".join(text if text.endswith("\n") else text + "\n" for text in texts[:-1]) + texts[-1]

    def _check(self, tokens: Mapping[str, NDArray[np.int64]]) -> None:
        for name, ids in tokens.items():
            least = 2 * self.length if name == "train" else 2
            if len(ids) < least:
                raise DataError(
                    field="data.path",
                    problem=f"the text's {name} part is too short",
                    value=f"{len(ids) - 1} tokens",
                    allowed=f"at least {least - 1}" + (", two windows" if name == "train" else ""),
                    fix="give a longer text, lower data.length, or change data.split",
                )
            unknown = int((ids == UNKNOWN).sum())
            if unknown:
                logger.warning(
                    "%d of the %s part's %d tokens are not in the vocabulary", unknown, name, len(ids) - 1
                )


def _read_text(path: Path) -> str:
    if not path.is_file():
        raise DataError(field="data.path", problem="no such file", value=str(path))
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            field="data.path",
            problem=f"'{path}' is not UTF-8 at byte {error.start}",
            fix="convert it, for example with iconv -t utf-8",
        ) from None
    except OSError as error:
        raise DataError(
            field="data.path", problem=f"can't read the text ({error.strerror})", value=str(path)
        ) from error
    if not text.strip():
        raise DataError(field="data.path", problem="the text is empty", value=str(path))
    return text


def _parts(text: str, split: SplitConfig) -> dict[str, str]:
    """Return the split's parts of ``text``, one after the other."""
    first = round(len(text) * split.train)
    last = len(text) - round(len(text) * split.test)
    return {"train": text[:first], "validation": text[first:last], "test": text[last:]}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
