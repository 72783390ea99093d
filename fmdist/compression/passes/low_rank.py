"""Linear layers and convolutions of low rank made into two smaller ones.

Sources: truncated SVD, Denton et al. 2014 (arXiv:1404.0736); randomized SVD, Halko et al. 2011
(arXiv:0909.4061), as in `torch.svd_lowrank`; pivoted QR as in `scipy.linalg.qr`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
import scipy.linalg
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fmdist.compression import reshape
from fmdist.compression.passes import layers as found_layers
from fmdist.compression.passes.base import Reduced, TorchBench, TorchPass

log = logging.getLogger(__name__)


class Config(TorchPass):
    """Each layer W (outputs, inputs) becomes A (outputs, R) after B (R, inputs), where that is smaller."""

    order: ClassVar[int] = 20
    renames: ClassVar[bool] = True

    method: Literal["svd", "randomized", "qr"] = "svd"
    """`svd` is the best approximation of its rank; `randomized` is faster for large layers, `qr` cheaper
    still and a little worse."""
    energy: float | None = Field(default=None, gt=0, lt=1)
    """Share of the squared singular values that each layer keeps: its rank follows. 0.9 unless `ratio` is
    given."""
    ratio: float | None = Field(default=None, gt=0, lt=1)
    """Rank of each layer over its full rank."""

    @model_validator(mode="after")
    def _one_measure(self) -> Config:
        if self.energy is not None and self.ratio is not None:
            message = "give energy or ratio, not both"
            raise ValueError(message)
        return self

    def check(self, module: nn.Module, example: tuple[Tensor, ...], fixed: Mapping[str, str]) -> None:
        """See `TorchPass.check`."""
        found_layers.ignored(found_layers.with_weights(module), self.ignore, {}, self.kind())

    def reduce(self, bench: TorchBench) -> Reduced:
        """See `TorchPass.reduce`."""
        layers = found_layers.with_weights(bench.served)
        reasons = found_layers.ignored(layers, self.ignore, {}, self.kind()) | _impossible(
            bench.served, layers
        )
        removed: dict[str, int] = {}
        factored: list[reshape.Change] = []
        for name, layer in layers.items():
            if name in reasons:
                continue
            matrix = found_layers.weights(layer)["weight"].detach().flatten(1)
            rank = self._rank(matrix)
            saved = matrix.numel() - rank * sum(matrix.shape)
            if saved <= 0:
                reasons[name] = f"at its rank of {rank} two layers would be no smaller"
                continue
            new = reshape.factors(layer, rank)
            _fill(new, layer, *self._factors(matrix, rank))
            reshape.replace(bench.served, name, new.eval())
            if not _runs(bench):
                reshape.replace(bench.served, name, layer)
                reasons[name] = "the code around it reads its weights itself"
                continue
            removed[name] = saved
            factored.append({"module": name, "rank": rank})
        coverage = found_layers.summarize(layers, lambda name: removed.get(name, 0), reasons, "")
        if factored and self.finetune is not None:
            bench.finetune(self.finetune, "finetune")
        return Reduced(coverage, factored)

    def _rank(self, matrix: Tensor) -> int:
        if self.ratio is not None:
            return max(1, round(self.ratio * min(matrix.shape)))
        squares = torch.linalg.svdvals(matrix) ** 2
        reached = torch.cumsum(squares, 0) / squares.sum() >= (self.energy or 0.9) - 1e-9
        return int(reached.to(torch.int8).argmax()) + 1

    def _factors(self, matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """Return A (outputs, rank) and B (rank, inputs)."""
        if self.method == "qr":
            q, r, order = scipy.linalg.qr(matrix.double().numpy(), mode="economic", pivoting=True)
            back = np.empty_like(order)
            back[order] = np.arange(len(order))
            return torch.from_numpy(q[:, :rank]).float(), torch.from_numpy(r[:rank][:, back]).float()
        if self.method == "randomized":
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                u, s, v = torch.svd_lowrank(matrix, q=min(rank + 8, *matrix.shape), niter=4)
            u, s, right = u[:, :rank], s[:rank], v[:, :rank].T
        else:
            u, s, right = torch.linalg.svd(matrix, full_matrices=False)
            u, s, right = u[:, :rank], s[:rank], right[:rank]
        # Shared between both, so that neither has much larger weights than the other.
        root = s.sqrt()
        return u * root, root[:, None] * right


@torch.no_grad()
def _runs(bench: TorchBench) -> bool:
    """Return whether the model runs; without gradients, where torch's transformers read weights directly."""
    try:
        bench.served(*bench.example)
    except AttributeError:
        return False
    return True


def _impossible(module: nn.Module, layers: dict[str, nn.Module]) -> dict[str, str]:
    """Return the layers that can't be made into two, with the reason."""
    uses = Counter(id(value) for layer in layers.values() for value in found_layers.weights(layer).values())
    attended = {
        f"{name}.{child}" if name else child
        for name, part in module.named_modules()
        if isinstance(part, nn.MultiheadAttention)
        for child, _ in part.named_modules()
    }
    reasons = {}
    for name, layer in layers.items():
        if type(layer) not in (nn.Linear, nn.Conv2d):
            reasons[name] = f"{type(layer).__name__} can't be made into two layers"
        elif isinstance(layer, nn.Conv2d) and layer.groups > 1:
            reasons[name] = "a grouped convolution is small already"
        elif name in attended:
            reasons[name] = "the attention around it reads its weights itself"
        elif uses[id(layer.weight)] > 1:
            reasons[name] = "it shares its weights with another layer"
        elif not name:
            reasons[name] = "the model is this one layer"
    return reasons


@torch.no_grad()
def _fill(new: nn.Sequential, layer: nn.Module, left: Tensor, right: Tensor) -> None:
    filled = {"0.weight": right, "1.weight": left}
    if layer.bias is not None:
        filled["1.bias"] = layer.get_parameter("bias")
    for name, parameter in new.named_parameters():
        parameter.copy_(filled[name].reshape(parameter.shape))
