"""Unstructured pruning: the weights of smallest magnitude become zero, at once or in rounds of training.

Zeros make the compressed file smaller and, on OpenVINO and ONNX Runtime, nothing faster; `prune_channels`
does that.
All layers are covered, recurrent ones too, whose weights NNCF leaves out.

Sources: magnitude pruning, Han et al. 2015 (arXiv:1506.02626); the cubic schedule, Zhu & Gupta 2017
(arXiv:1710.01878); N:M sparsity, Mishra et al. 2021 (arXiv:2104.08378).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from fmdist.compression.passes import layers as found_layers
from fmdist.compression.passes.base import Reduced, TorchBench, TorchPass
from fmdist.compression.passes.batchnorm import adapt
from fmdist.errors import CapabilityError

log = logging.getLogger(__name__)


class Config(TorchPass):
    """Rounds of: make the smallest weights zero, measure BatchNorm's statistics anew, train on."""

    order: ClassVar[int] = 30

    sparsity: float | None = Field(default=None, gt=0, lt=1)
    """Share of the weights that are zero in the end; 0.8 unless `pattern` is given."""
    scope: Literal["global", "local"] = "global"
    """`global`: the smallest of all layers together; `local`: the same share of each."""
    pattern: str | None = None
    """N:M, such as `2:4`: of every M weights in a row of a layer's inputs the N largest stay."""
    schedule: Literal["one_shot", "cubic", "exponential", "multi_step"] = "cubic"
    """How sparsity grows over the rounds: `cubic` fast at first (Zhu & Gupta 2017), `exponential` by the
    same share of what is left each time, `multi_step` by equal steps."""
    rounds: int = Field(default=4, ge=1)
    """Rounds of pruning and training; `one_shot` has one."""
    batchnorm_samples: int = Field(default=512, ge=0)
    """Training samples by which BatchNorm's statistics are measured anew after a pruning; 0 leaves them."""

    @field_validator("pattern")
    @classmethod
    def _is_pattern(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            parts = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", pattern)
            if parts is None or int(parts[1]) >= int(parts[2]):
                message = f"'{pattern}' is no N:M with N below M, such as 2:4"
                raise ValueError(message)
        return pattern

    @model_validator(mode="after")
    def _one_measure(self) -> Config:
        if self.pattern is not None and self.sparsity is not None:
            message = "give sparsity or pattern, not both"
            raise ValueError(message)
        return self

    def reduce(self, bench: TorchBench) -> Reduced:
        """See `TorchPass.reduce`."""
        layers = found_layers.with_weights(bench.served)
        reasons = found_layers.ignored(layers, self.ignore, {}, self.kind())
        chosen = {name: layer for name, layer in layers.items() if name not in reasons}
        matrices = _matrices(chosen)
        if self.pattern is not None:
            reasons |= _left_by_pattern(matrices, self._group)
            matrices = {name: value for name, value in matrices.items() if name[0] not in reasons}
        if not matrices:
            raise CapabilityError(
                field=f"compress.passes.{self.kind()}",
                problem="there is no layer that it may prune",
                fix="; ".join(f"{name}: {reason}" for name, reason in reasons.items()),
            )
        rounds = []
        for number, share in enumerate(self._shares(), start=1):
            self._prune(matrices, share)
            if self.batchnorm_samples:
                adapt(bench.served, bench.task, bench.splits, self.batchnorm_samples, bench.seed)
            if self.finetune is not None:
                bench.finetune(self.finetune, f"round-{number}")
            rounds.append(
                {
                    "setting": f"round {number}: {self.pattern or f'{share:.1%}'}",
                    "value": bench.value(),
                    "parameters": sum(value.numel() for value in bench.served.parameters()),
                    "nonzero": sum(int(value.count_nonzero()) for value in bench.served.parameters()),
                }
            )
            log.info("%s: %.4g on validation", rounds[-1]["setting"], rounds[-1]["value"])

        def zeros(name: str) -> int:
            own = found_layers.weights(layers[name]).values()
            return sum(value.numel() - int(value.count_nonzero()) for value in own)

        coverage = found_layers.summarize(layers, zeros, reasons, "its weights are all larger than those cut")
        return Reduced(coverage, candidates=rounds)

    @property
    def _group(self) -> tuple[int, int]:
        keep, size = (self.pattern or "1:1").split(":")
        return int(keep), int(size)

    def _shares(self) -> list[float]:
        """Return the share of zeros after each round."""
        share = 0.8 if self.sparsity is None else self.sparsity
        if self.schedule == "one_shot" or self.pattern is not None:
            return [share]
        parts = [number / self.rounds for number in range(1, self.rounds + 1)]
        growth = {
            "cubic": lambda part: share * (1 - (1 - part) ** 3),
            "exponential": lambda part: 1 - (1 - share) ** part,
            "multi_step": lambda part: share * part,
        }
        return [growth[self.schedule](part) for part in parts]

    @torch.no_grad()
    def _prune(self, matrices: Mapping[tuple[str, str], Tensor], share: float) -> None:
        if self.pattern is not None:
            for value in matrices.values():
                _keep_largest(value, *self._group)
        elif self.scope == "local":
            for value in matrices.values():
                value[value.abs() <= smallest(value.abs().flatten(), share)] = 0
        else:
            limit = smallest(torch.cat([value.abs().flatten() for value in matrices.values()]), share)
            for value in matrices.values():
                value[value.abs() <= limit] = 0


def smallest(magnitudes: Tensor, share: float) -> Tensor:
    """Return the magnitude up to which ``share`` of them lie; below all of them if that is none."""
    count = round(share * magnitudes.numel())
    return magnitudes.kthvalue(count).values if count else magnitudes.new_tensor(-1.0)


def _matrices(layers: Mapping[str, nn.Module]) -> dict[tuple[str, str], Tensor]:
    """Return (layer, its tensor) -> weights; those that layers share once."""
    found: dict[int, tuple[tuple[str, str], Tensor]] = {}
    for name, layer in layers.items():
        for key, value in found_layers.weights(layer).items():
            found.setdefault(id(value), ((name, key), value.data))
    return dict(found.values())


def _left_by_pattern(matrices: Mapping[tuple[str, str], Tensor], group: tuple[int, int]) -> dict[str, str]:
    size = group[1]
    return {
        name: f"its {value.shape[1]} inputs are no multiple of {size}"
        for (name, _), value in matrices.items()
        if value.shape[1] % size
    }


def _keep_largest(value: Tensor, keep: int, size: int) -> None:
    """Make all but the ``keep`` largest of every ``size`` weights along the inputs (axis 1) zero."""
    rows: Any = value.movedim(1, -1)
    groups = rows.reshape(-1, size)
    order = groups.abs().argsort(dim=1, descending=True, stable=True)
    groups = groups.scatter(1, order[:, keep:], 0.0)
    value.copy_(groups.reshape(rows.shape).movedim(-1, 1))
