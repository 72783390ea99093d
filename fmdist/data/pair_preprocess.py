"""Pairs of texts to token ids; NumPy only, training and `fmdist predict` share it.

Shapes: N pairs, S time of the source, T time of the target.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fmdist.contracts import InputSpec, TargetSpec
from fmdist.data.preprocess import Preprocess, Raw
from fmdist.data.text_preprocess import Losses
from fmdist.data.tokenizer import BEGIN, END, UNKNOWN, TextTokenizer, fit_tokenizer
from fmdist.errors import DataError

if TYPE_CHECKING:
    from fmdist.data.tokenizer_config import TokenizerConfig

logger = logging.getLogger(__name__)

PAIR = np.dtype([("source", object), ("target", object)])
"""The type of raw rows in training."""

SOURCE = np.dtype([("source", object)])
"""The type of raw rows to translate."""


@dataclass(frozen=True)
class PairPreprocess(Preprocess):
    """Sources end in `END`; ``prefix`` is `BEGIN` and the target's tokens, ``target`` those and `END`.

    So at each position the model sees the target up to there and is asked for what follows.
    """

    kind: ClassVar[str] = "pair"

    max_length: int
    """Most tokens of a text, `BEGIN` or `END` included; what follows is cut off."""
    column: str = "source"
    """The column that holds the texts in tables of the user."""
    source_tokenizer: str = ""
    """Fitted, as the tokenizers library's JSON; empty before `fit`."""
    target_tokenizer: str = ""
    """Fitted; the same as `source_tokenizer` if they are shared."""
    longest_source: int = 0
    """Tokens of the longest source in the training split, `END` included."""
    longest_target: int = 0
    """Tokens of the longest target in the training split, `END` included."""
    configs: tuple[TokenizerConfig, TokenizerConfig | None] | None = None
    """What to fit for source and target, no second one for one that both share; None after `fit`."""

    @cached_property
    def source(self) -> TextTokenizer:
        """The source's tokenizer, ready for use."""
        return TextTokenizer(self.source_tokenizer)

    @cached_property
    def written(self) -> TextTokenizer:
        """The target's tokenizer, ready for use."""
        return TextTokenizer(self.target_tokenizer)

    @property
    def inputs(self) -> tuple[InputSpec, InputSpec]:
        """``source`` (S,) and ``prefix`` (T,), int64."""
        return (
            InputSpec("source", (None,), "int64", self.source.size, self.longest_source),
            InputSpec("prefix", (None,), "int64", self.written.size, self.longest_target),
        )

    @property
    def tokenizers(self) -> dict[str, str]:
        """The tokenizers of ``source`` and ``target``."""
        return {"source": self.source_tokenizer, "target": self.target_tokenizer}

    def target(self, spec: TargetSpec) -> TargetSpec:
        """Return the target with its vocabulary's size."""
        return replace(spec, size=self.written.size)

    def fit(self, chunks: Iterable[Raw], normalize: bool) -> PairPreprocess:
        """Return a copy with tokenizers that were fitted on these texts; tells how many will be cut."""
        assert self.configs is not None
        parts = list(chunks)
        sources = [text for part in parts for text in part["source"]]
        targets = [text for part in parts for text in part["target"]]
        first, second = self.configs
        if second is None:
            source_json = target_json = fit_tokenizer(first, [*sources, *targets])
        else:
            source_json, target_json = fit_tokenizer(first, sources), fit_tokenizer(second, targets)
        lengths = [
            [len(ids) + 1 for ids in TextTokenizer(json).encode(texts)]
            for json, texts in ((source_json, sources), (target_json, targets))
        ]
        cut = sum(length > self.max_length for side in lengths for length in side)
        if cut:
            logger.warning(
                "%d of %d training texts are longer than data.max_length, %d tokens, and were cut",
                cut,
                2 * len(sources),
                self.max_length,
            )
        longest = [min(max(side, default=1), self.max_length) for side in lengths]
        return replace(
            self,
            source_tokenizer=source_json,
            target_tokenizer=target_json,
            longest_source=longest[0],
            longest_target=longest[1],
            configs=None,
        )

    def __call__(self, raw: Raw) -> dict[str, NDArray[np.int64]]:
        """Return ``source`` (N, S) and ``prefix`` (N, T); for pairs ``target`` (N, T) too, else T is 1.

        Raises:
            DataError: if ``raw`` isn't rows of sources, with or without targets.
        """
        if raw.dtype not in (PAIR, SOURCE) or raw.ndim != 1:
            raise DataError(
                field="source",
                problem="not rows of texts",
                value=f"{raw.dtype} {raw.shape}",
                allowed=f"{PAIR} (N,) or {SOURCE} (N,)",
            )
        most = self.max_length - 1
        sources = [[*ids[:most], END] for ids in self.source.encode(list(raw["source"]))]
        if raw.dtype == SOURCE:
            return {"source": _padded(sources), "prefix": np.full((len(raw), 1), BEGIN, np.int64)}
        targets = [ids[:most] for ids in self.written.encode(list(raw["target"]))]
        return {
            "source": _padded(sources),
            "prefix": _padded([[BEGIN, *ids] for ids in targets]),
            "target": _padded([[*ids, END] for ids in targets]),
        }

    def losses(self, raw: Raw) -> Losses:
        """Return what the model can't see of the sources."""
        rows = self.source.encode(list(raw["source"]))
        return Losses(
            tokens=sum(map(len, rows)),
            unknown=sum(int((ids == UNKNOWN).sum()) for ids in rows),
            cut=sum(len(ids) >= self.max_length for ids in rows),
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values of the fitted preprocessing; `from_json` reads them back."""
        fields = {name: value for name, value in asdict(self).items() if name != "configs"}
        return {"kind": self.kind, **fields}

    @staticmethod
    def read_json(value: Mapping[str, Any]) -> PairPreprocess:
        """Read the fields that `to_json` wrote."""
        return PairPreprocess(**value)


def _padded(rows: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """Return ids (N, T), padded with zeros at the end; at least one column."""
    ids_NT = np.zeros((len(rows), max(map(len, rows), default=1)), np.int64)
    for row, ids in enumerate(rows):
        ids_NT[row, : len(ids)] = ids
    return ids_NT
