"""A running text as samples: windows of tokens, each with the tokens that follow.

Shapes: M tokens of a text, N windows, B batch, T time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from fmdist.contracts import Batch, Draw
from fmdist.data.raw import Rows
from fmdist.data.window_preprocess import PROMPT, WindowPreprocess

Tokens = NDArray[np.int64]


class WindowSplit:
    """The windows of one split, a `fmdist.contracts.Dataset`: ``tokens`` and ``target``, int64 (B, T).

    Args:
        name: of the split, for `sources`.
        tokens: (M,) ids of the whole split.
        starts: (N,) where each window begins.
        preprocess: whose tokenizer made the tokens.
        length: T.
        context: tokens of every window but the first that are given and not scored (target 0).
        seed: cut the text elsewhere in every epoch after the first: shift all windows by up to T - 1 tokens,
            keyed by (seed, epoch). None leaves them where they are.
    """

    def __init__(
        self,
        name: str,
        tokens: Tokens,
        starts: Rows,
        preprocess: WindowPreprocess,
        length: int,
        context: int = 0,
        seed: int | None = None,
    ) -> None:
        self.preprocess = preprocess
        self._name = name
        self._tokens = tokens
        self._starts = starts
        self._length = length
        self._context = context
        self._seed = seed
        self._inputs, self.targets = self._cut(np.arange(len(starts)), 0)

    @classmethod
    def training(
        cls, name: str, tokens: Tokens, preprocess: WindowPreprocess, length: int, seed: int
    ) -> Self:
        """Return windows side by side that are shifted in every epoch; M must be at least 2 T."""
        starts = np.arange((len(tokens) - length) // length) * length
        return cls(name, tokens, starts, preprocess, length, seed=seed)

    @classmethod
    def evaluation(cls, name: str, tokens: Tokens, preprocess: WindowPreprocess, context: int) -> Self:
        """Return windows that score every token but the first exactly once; M must be at least 2.

        They are of ``preprocess.length`` tokens and overlap by ``context`` of them, in [0, T), so that a
        window's first scored token has a history.
        """
        length = min(preprocess.length, len(tokens) - 1)
        stride = preprocess.length - context
        starts = np.arange(1 + -(-(len(tokens) - 1 - length) // stride)) * stride
        return cls(name, tokens, starts, preprocess, length, context)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitems__(self, draw: Draw) -> Batch:
        """Return the windows of ``draw``: ``tokens``, ``target`` and ``index`` int64 (B,)."""
        if self._seed is None or draw.epoch == 0:
            inputs_BT, target_BT = self._inputs[draw.indices], self.targets[draw.indices]
        else:
            random = np.random.default_rng([self._seed, draw.epoch])
            inputs_BT, target_BT = self._cut(draw.indices, int(random.integers(self._length)))
        return {
            "tokens": torch.from_numpy(inputs_BT),
            "target": torch.from_numpy(target_BT),
            "index": torch.from_numpy(draw.indices),
        }

    def raw(self, indices: Rows) -> NDArray[np.void]:
        """Return windows as texts, before any shift."""
        texts = [(self.preprocess.text.decode(ids),) for ids in self._inputs[indices]]
        return np.array(texts, PROMPT)

    @property
    def sources(self) -> Sequence[str]:
        """Where each window begins in its split."""
        return [f"{self._name}, token {start}" for start in self._starts]

    def plain(self) -> WindowSplit:
        """Return this split without shifts, for evaluation or calibration on training windows."""
        if self._seed is None:
            return self
        return WindowSplit(
            self._name, self._tokens, self._starts, self.preprocess, self._length, self._context
        )

    def _cut(self, indices: Rows, shift: int) -> tuple[Tokens, Tokens]:
        """Return inputs and targets, int64 (B, T); the text's last window may end in padding."""
        position_BT = self._starts[indices][:, None] + shift + np.arange(self._length)
        padded = np.pad(self._tokens, (0, self._length + 1))
        inputs_BT, target_BT = padded[position_BT], padded[position_BT + 1]
        inputs_BT[target_BT == 0] = 0
        target_BT[indices > 0, : self._context] = 0
        return inputs_BT, target_BT
