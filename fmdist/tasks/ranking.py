"""Metrics of rankings: how well the first K answers cover what a user wanted, as means over users.

Shapes: N users, S numbers of a row, K answers, L wanted items.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fmdist.metrics import Metric


class RankingMetric(Metric):
    """The mean of a score per user; rows are the answers' positions, then their scores, (N, S)."""

    higher_is_better = True
    full_state_update = False
    score_sum: Tensor
    count: Tensor

    def __init__(self, k: int) -> None:
        super().__init__()
        self._k = k
        self.add_state("score_sum", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, rows_NS: Tensor, target_NL: Tensor) -> None:
        """Add users: their rows, and the items they wanted, padded with -1."""
        items_NK = rows_NS[:, : rows_NS.shape[1] // 2][:, : self._k]
        hits_NK = (items_NK[:, :, None] == target_NL[:, None, :]).any(dim=2) & (items_NK >= 0)
        wanted_N = (target_NL >= 0).sum(dim=1)
        self.score_sum += self.score(hits_NK.double(), wanted_N).sum()
        self.count += len(rows_NS)

    def compute(self) -> Tensor:
        """Return the mean over users."""
        return self.score_sum / self.count

    def score(self, hits_NK: Tensor, wanted_N: Tensor) -> Tensor:
        """Return (N,) scores in [0, 1], from which answers were right (1 or 0) and how many were wanted."""
        raise NotImplementedError


class HitRate(RankingMetric):
    """Share of users for whom at least one of the first K answers is right."""

    def score(self, hits_NK: Tensor, wanted_N: Tensor) -> Tensor:
        """See `RankingMetric.score`."""
        return hits_NK.amax(dim=1)


class Recall(RankingMetric):
    """Share of a user's wanted items that are among the first K answers."""

    def score(self, hits_NK: Tensor, wanted_N: Tensor) -> Tensor:
        """See `RankingMetric.score`."""
        return hits_NK.sum(dim=1) / wanted_N


class NDCG(RankingMetric):
    """Normalized discounted cumulative gain (Järvelin & Kekäläinen 2002, doi:10.1145/582415.582418).

    A right answer at place i, from 1, gains 1 / log2(i + 1); 1 is all wanted items first.
    """

    def score(self, hits_NK: Tensor, wanted_N: Tensor) -> Tensor:
        """See `RankingMetric.score`."""
        places_K = torch.arange(1, hits_NK.shape[1] + 1, dtype=torch.float64, device=hits_NK.device)
        gain_K = 1 / torch.log2(places_K + 1)
        ideal_N = gain_K.cumsum(0)[wanted_N.clamp(max=len(gain_K)) - 1]
        return (hits_NK * gain_K).sum(dim=1) / ideal_N
