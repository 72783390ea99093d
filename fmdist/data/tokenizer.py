"""Texts to token ids and back, by the tokenizers library.

Training, artifacts and `fmdist predict` share this; a tokenizer travels as that library's JSON text. Needs
the extra ``text``; NumPy, no torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fmdist import component
from fmdist.errors import DataError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from fmdist.data.tokenizer_config import TokenizerConfig

PADDING, UNKNOWN, BEGIN, END = 0, 1, 2, 3
"""The ids that every tokenizer of fmdist starts with."""

SPECIAL = ("<pad>", "<unk>", "<s>", "</s>")
"""How the ids `PADDING` to `END` are called in a tokenizer's vocabulary."""

SMALLEST_BPE = len(SPECIAL) + 256
"""Tokens of a byte-level vocabulary that has merged nothing yet."""


def fit_tokenizer(config: TokenizerConfig, texts: Iterable[str]) -> str:
    """Return the JSON text of a tokenizer that knows the most frequent tokens of ``texts``.

    The same texts give the same tokenizer, whatever the process or the number of threads.

    Raises:
        DataError: if the texts hold no token that occurs often enough.
        DependencyMissing: if the tokenizers library is not installed.
    """
    component.require("text", needed_by="a tokenizer")
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    trainer: trainers.Trainer
    if config.kind == "bpe":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=config.vocabulary,
            min_frequency=config.min_count,
            special_tokens=list(SPECIAL),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
    else:
        tokenizer = Tokenizer(models.WordLevel(unk_token=SPECIAL[UNKNOWN]))
        if config.kind == "character":
            tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
            tokenizer.decoder = decoders.Fuse()
        else:
            tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        trainer = trainers.WordLevelTrainer(
            vocab_size=config.vocabulary,
            min_frequency=config.min_count,
            special_tokens=list(SPECIAL),
            show_progress=False,
        )
    # One letter may be written as one code point or as two; both spellings become the same token.
    steps: list[normalizers.Normalizer] = [normalizers.NFC()]
    if config.lowercase:
        steps.append(normalizers.Lowercase())
    tokenizer.normalizer = normalizers.Sequence(steps)
    with _one_thread():
        tokenizer.train_from_iterator(texts, trainer)
    if tokenizer.get_vocab_size() == len(SPECIAL):
        raise DataError(
            field="data.tokenizer.min_count",
            problem=f"no {config.kind} of the training split occurs often enough to be learned",
            value=config.min_count,
            fix="lower it, or check the text column",
        )
    return str(tokenizer.to_str())


class TextTokenizer:
    """A fitted tokenizer.

    >>> from fmdist.data.tokenizer_config import TokenizerConfig
    >>> text = TextTokenizer(fit_tokenizer(TokenizerConfig(kind="character"), ["abba"]))
    >>> text.size, text.encode(["ab?"])[0].tolist(), text.decode(np.array([4, 5, 3, 4]))
    (6, [4, 5, 1], 'ab')
    """

    def __init__(self, json: str) -> None:
        """Read the JSON text that `fit_tokenizer` returned.

        Raises:
            DataError: if it is no tokenizer, or one without fmdist's special tokens.
            DependencyMissing: if the tokenizers library is not installed.
        """
        self._tokenizer = _read(json)
        self.json = json
        """What `TextTokenizer` reads back."""
        self.size: int = self._tokenizer.get_vocab_size()
        """Tokens of the vocabulary, the special ones included; ids are in [0, size)."""

    def __reduce__(self) -> tuple[type[TextTokenizer], tuple[str]]:
        # Pickled by itself, the library's object would again read the names of special tokens as such.
        return TextTokenizer, (self.json,)

    def encode(self, texts: Sequence[str]) -> list[NDArray[np.int64]]:
        """Return the ids of each text, (T,); nothing is added, cut or padded.

        What the tokenizer doesn't know becomes `UNKNOWN`. Names of special tokens are text like any other.
        """
        # One text at a time: the library's threads would warn of, and lock, a process that forks later.
        return [
            np.array(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int64) for text in texts
        ]

    def decode(self, ids: NDArray[np.int64]) -> str:
        """Return the text of ids (T,) up to the first `END`, without special tokens."""
        ends = np.flatnonzero(ids == END)
        kept = ids[: ends[0]] if len(ends) else ids
        return str(self._tokenizer.decode(kept[kept > END].tolist(), skip_special_tokens=False))


def _read(json: str) -> Tokenizer:
    component.require("text", needed_by="a tokenizer")
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(json)
    except Exception as error:  # the library raises Exception itself
        raise DataError(
            field="tokenizer",
            problem=f"not the JSON text of a tokenizer ({error})",
            value=json,
            fix="the file may be damaged; train again, or restore it",
        ) from None
    found = [tokenizer.id_to_token(position) for position in range(len(SPECIAL))]
    if found != list(SPECIAL):
        raise DataError(
            field="tokenizer",
            problem="the tokenizer doesn't start with fmdist's special tokens",
            value=found,
            allowed=", ".join(SPECIAL),
        )
    # Otherwise a text that holds "</s>" would be read as having ended there.
    tokenizer.encode_special_tokens = True
    return tokenizer


@contextmanager
def _one_thread() -> Iterator[None]:
    """Keep the library from starting threads, of which it warns when a DataLoader forks its workers."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
