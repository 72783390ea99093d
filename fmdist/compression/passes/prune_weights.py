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
from collections import Counter
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from fmdist.compression.allocation import Curve, curve_of, share_out
from fmdist.compression.passes import layers as found_layers
from fmdist.compression.passes.base import Reduced, TorchBench, TorchPass
from fmdist.compression.passes.batchnorm import adapt
from fmdist.compression.passes.regularization import learn
from fmdist.errors import CapabilityError

_MOST = 0.99
"""Largest share of zeros in any layer, unless more is asked for of all: one without weights says nothing."""

log = logging.getLogger(__name__)


class Config(TorchPass):
    """Rounds of: make the smallest weights zero, measure BatchNorm's statistics anew, train on."""

    order: ClassVar[int] = 30

    method: Literal["magnitude", "regularization"] = "magnitude"
    """`regularization` first learns which weights may go, a mask for each (Louizos et al. 2017), then prunes
    once, whatever `schedule` says; what NNCF leaves out, such as recurrent layers, goes by magnitude."""
    regularization_epochs: int = Field(default=24, ge=1)
    """Epochs in which the masks are learned; a mask needs some 300 steps to fall to zero."""
    sparsity: float | None = Field(default=None, gt=0, lt=1)
    """Share of the weights that are zero in the end; 0.8 unless `pattern` is given."""
    scope: Literal["global", "local"] = "global"
    """`global`: the smallest of all layers together; `local`: the same share of each."""
    pattern: str | None = None
    """N:M, such as `2:4`: of every M weights in a row of a layer's inputs the N largest stay."""
    allocate: Literal["sensitivity"] | None = None
    """`sensitivity`: each layer has a share of its own, smaller where zeros cost more on validation data, so
    that all layers together reach `sparsity`; null compares magnitudes as `scope` says."""
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
        if self.allocate is not None and (self.pattern is not None or self.scope == "local"):
            message = "allocate gives each layer its own share; leave pattern out and scope at global"
            raise ValueError(message)
        chosen = self.pattern is not None or self.allocate is not None or self.scope == "local"
        if self.method == "regularization" and chosen:
            message = "regularization learns each layer's share; leave pattern, allocate and scope out"
            raise ValueError(message)
        return self

    def check(self, module: nn.Module, example: tuple[Tensor, ...], fixed: Mapping[str, str]) -> None:
        """See `TorchPass.check`."""
        found_layers.ignored(found_layers.with_weights(module), self.ignore, {}, self.kind())

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
        curves = self._curves(bench, matrices) if self.allocate else {}
        learned = self._learned(bench, matrices) if self.method == "regularization" else {}
        matrices = _matrices(chosen) if learned else matrices  # training elsewhere gives them other memory
        rounds = []
        for number, share in enumerate(self._shares(), start=1):
            if learned:
                _prune_learned(matrices, learned, share)
            elif curves:
                _prune_each(matrices, share_out(curves, share, max(_MOST, share)))
            else:
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

        default = "others mind zeros less" if curves else "its weights are all larger than those cut"
        coverage = found_layers.summarize(layers, zeros, reasons, default)
        by_mask = {name for name, _ in learned}
        for changed in coverage["changed"]:
            changed["method"] = "regularization" if changed["name"] in by_mask else "magnitude"
        return Reduced(coverage, candidates=rounds)

    def _curves(self, bench: TorchBench, matrices: Mapping[tuple[str, str], Tensor]) -> dict[str, Curve]:
        """Return what zeros cost each layer, as it is before the first round."""
        record = bench.sensitivity()
        rows = {row["name"]: row["weights"] for row in record["layers"]}
        sizes: Counter[str] = Counter()
        for (name, _), value in matrices.items():
            sizes[name] += value.numel()
        return {name: curve_of(rows[name], size, record["value"]) for name, size in sizes.items()}

    def _learned(
        self, bench: TorchBench, matrices: Mapping[tuple[str, str], Tensor]
    ) -> dict[tuple[str, str], Tensor]:
        """Return which of the weights that NNCF covers stay; what training left is kept if it is ended."""
        lr = self.finetune.lr if self.finetune and self.finetune.lr else bench.lr
        settings = {
            "epochs": self.regularization_epochs,
            "optimizer": "AdamW",
            "options": {},
            "lr": lr,
            "weight_decay": 0.0,
            "schedule": "cosine",
        }
        (share,) = self._shares()
        return learn(bench.task, bench.example, matrices, share, lr, lambda task: bench.train(task, settings))

    @property
    def _group(self) -> tuple[int, int]:
        keep, size = (self.pattern or "1:1").split(":")
        return int(keep), int(size)

    def _shares(self) -> list[float]:
        """Return the share of zeros after each round."""
        share = 0.8 if self.sparsity is None else self.sparsity
        at_once = self.schedule == "one_shot" or self.method == "regularization"
        if at_once or self.pattern is not None:
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
                value[value.abs() <= found_layers.smallest(value.abs().flatten(), share)] = 0
        else:
            limit = found_layers.smallest(
                torch.cat([value.abs().flatten() for value in matrices.values()]), share
            )
            for value in matrices.values():
                value[value.abs() <= limit] = 0


@torch.no_grad()
def _prune_each(matrices: Mapping[tuple[str, str], Tensor], shares: Mapping[str, float]) -> None:
    for (name, _), value in matrices.items():
        value[value.abs() <= found_layers.smallest(value.abs().flatten(), shares[name])] = 0


@torch.no_grad()
def _prune_learned(
    matrices: Mapping[tuple[str, str], Tensor], learned: Mapping[tuple[str, str], Tensor], share: float
) -> None:
    for key, value in matrices.items():
        if key in learned:
            value.mul_(learned[key])
        else:
            value[value.abs() <= found_layers.smallest(value.abs().flatten(), share)] = 0


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
