"""Which samples make step k of epoch e: a function of (seed, epoch), so resume at any step costs nothing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fmdist.errors import DataError

Indices = NDArray[np.int64]


class BatchPlan:
    """The global batches of every epoch; the number of workers changes neither batches nor their order.

    Args:
        size: samples in the split, at least 1.
        global_batch: samples in a step over all workers and accumulated microbatches, at least 1.
        seed: keys the order, together with the epoch.
        weights: (size,) relative frequencies; draws with replacement. None visits each sample once an epoch.
        drop_last: leave out an epoch's last batch if it is smaller than the others.

    Raises:
        DataError: if there is no full batch and ``drop_last``, or the weights don't fit.
    """

    def __init__(
        self,
        size: int,
        global_batch: int,
        seed: int,
        weights: NDArray[np.float64] | None = None,
        drop_last: bool = False,
    ) -> None:
        if size < 1 or global_batch < 1 or (drop_last and size < global_batch):
            raise DataError(
                field="train.batch_size",
                problem="no batch can be made",
                value=f"{global_batch} of {size} samples" + (", drop_last" if drop_last else ""),
                allowed="at least 1" + (f" and at most {size}" if drop_last else ""),
            )
        self.size = size
        self.global_batch = global_batch
        self.seed = seed
        self.drop_last = drop_last
        self.shares = None if weights is None else _shares(weights, size)
        self._epoch = -1
        self._order: Indices = np.zeros(0, np.int64)

    @property
    def steps_per_epoch(self) -> int:
        """Batches in an epoch."""
        full, rest = divmod(self.size, self.global_batch)
        return full + (1 if rest and not self.drop_last else 0)

    @property
    def smallest_batch(self) -> int:
        """Samples in the smallest batch of an epoch, its last."""
        rest = self.size % self.global_batch
        return rest if rest and not self.drop_last else min(self.size, self.global_batch)

    def indices(self, epoch: int, step: int) -> Indices:
        """Return the samples of one global batch, int64 (<= global_batch,); ``step`` counts from 0."""
        if not 0 <= step < self.steps_per_epoch:
            message = f"step {step} is not in [0, {self.steps_per_epoch})"
            raise IndexError(message)
        if epoch != self._epoch:
            self._order = self._draw(epoch)
            self._epoch = epoch
        start = step * self.global_batch
        return self._order[start : start + self.global_batch]

    @staticmethod
    def parts(indices: Indices, parts: int) -> list[Indices]:
        """Cut a batch into contiguous pieces whose sizes differ by at most 1."""
        return np.array_split(indices, parts)

    def _draw(self, epoch: int) -> Indices:
        # Philox is counter-based: its stream is a function of the key alone
        random = np.random.Generator(np.random.Philox(key=np.array([self.seed, epoch], np.uint64)))
        if self.shares is None:
            return random.permutation(self.size)
        return random.choice(self.size, self.size, p=self.shares)


def _shares(weights: NDArray[np.float64], size: int) -> NDArray[np.float64]:
    fits = weights.shape == (size,) and bool(np.isfinite(weights).all()) and bool((weights >= 0).all())
    if not fits or weights.sum() <= 0:
        raise DataError(
            field="weights",
            problem="sampling weights that don't fit the split",
            value=f"shape {weights.shape}",
            allowed=f"{size} finite numbers, none negative, not all zero",
        )
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares
