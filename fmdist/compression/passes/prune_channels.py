"""Channels removed from all layers that share them: a smaller dense model, faster on every runtime.

Source: Torch-Pruning, Fang et al. 2023 (arXiv:2301.12900), which finds the layers that must change together.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fmdist.compression.allocation import Curve, added, curve_of, in_multiples, share_out
from fmdist.compression.passes import attention, ratio_search
from fmdist.compression.passes import layers as found_layers
from fmdist.compression.passes.base import Reduced, TorchBench, TorchPass
from fmdist.contracts import Draw
from fmdist.errors import CapabilityError

REQUIRES = ("compress",)

_BATCH = 64


Curves = Mapping[tuple[str, ...], Curve]
"""By the layers that lose their channels together."""


class Ratios(NamedTuple):
    """Which share of their channels layers lose."""

    default: float
    own: Mapping[str, float] = MappingProxyType({})
    """Of some layers, by name."""


log = logging.getLogger(__name__)


class Config(TorchPass):
    """Rounds of: remove the least important channels, train on."""

    order: ClassVar[int] = 10

    ratio: float | None = Field(default=None, gt=0, lt=1)
    """Share of the channels to remove of every layer (`uniform`) or of all together (`global`); 0.5 unless
    `flops` or `latency` is given."""
    flops: float | None = Field(default=None, gt=0, lt=1)
    """Share of the multiplications that may stay: the ratio is found by bisection."""
    latency: float | None = Field(default=None, gt=0, lt=1)
    """Share of the uncompressed model's time for one sample that may stay, as float models in OpenVINO at
    one thread: the ratio is found by bisection, from measurements on this machine."""
    scope: Literal["uniform", "global"] = "uniform"
    """`global` compares channels of all layers, and may thin some of them out."""
    allocate: Literal["sensitivity"] | None = None
    """`sensitivity`: each layer has a ratio of its own, smaller where channels cost more on validation data,
    so that all layers together reach `ratio`; null leaves it to `scope`."""
    importance: Literal["magnitude", "taylor", "bn_scale"] = "magnitude"
    """What a channel is worth: the L2 norm of its weights, the loss's first-order change without it on
    training samples (Molchanov et al. 2019, arXiv:1906.10771), or its BatchNorm's scale (Liu et al. 2017,
    arXiv:1708.06519)."""
    most: float = Field(default=0.9, gt=0, lt=1)
    """Largest share that any layer may lose."""
    rounds: int = Field(default=1, ge=1)
    """Rounds of removing and training; the ratio grows evenly."""
    multiple: int = Field(default=8, ge=1)
    """Channels that stay are a multiple of this, as INT8 kernels like it; layers with fewer keep theirs."""
    samples: int = Field(default=256, ge=1)
    """Training samples that `taylor` measures on."""

    @model_validator(mode="after")
    def _one_target(self) -> Config:
        given = [key for key in ("ratio", "flops", "latency") if getattr(self, key) is not None]
        if len(given) > 1:
            message = f"give {' or '.join(given)}, not {'both' if len(given) == 2 else 'all'}"
            raise ValueError(message)
        if self.allocate is not None and self.scope == "global":
            message = "allocate gives each layer its own ratio; leave scope at uniform"
            raise ValueError(message)
        return self

    def reduce(self, bench: TorchBench) -> Reduced:
        """See `TorchPass.reduce`."""
        module = bench.served
        layers = found_layers.with_weights(module)
        reasons = self._left(module, bench.example, bench.fixed)
        reasons |= self._fixed(bench, reasons)
        before = {name: _sizes(layer) for name, layer in layers.items()}
        curves = self._curves(bench, reasons) if self.allocate else {}
        ratio, tried = self._target(bench, reasons, curves)
        pruner = self._pruner(module, bench.example, list(reasons), self._ratios(ratio, curves), self.rounds)
        rounds = []
        for number in range(1, self.rounds + 1):
            if self.importance == "taylor":
                _gradients(bench, self.samples)
            self._step(pruner)
            module.zero_grad()
            attention.mend(module)
            if self.finetune is not None:
                bench.finetune(self.finetune, f"round-{number}")
            setting = f"round {number}: {ratio * number / self.rounds:.1%} of the channels"
            rounds.append(ratio_search.left(setting, module, bench.value()))
            log.info("%s: %.4g on validation", rounds[-1]["setting"], rounds[-1]["value"])
        # Of the layers as they were, a copy: those in `layers` have changed.
        after = {name: _sizes(layer) for name, layer in found_layers.with_weights(module).items()}
        default = f"fewer than {self.multiple} channels could go, or it isn't known how they depend on others"
        coverage = found_layers.summarize(layers, lambda name: before[name] - after[name], reasons, default)
        coverage["parameters"] = sum(before.values())
        for changed in coverage["changed"]:
            changed["of"] = before[changed["name"]]
        return Reduced(coverage, candidates=[*tried, *rounds])

    def check(self, module: nn.Module, example: tuple[Tensor, ...], fixed: Mapping[str, str]) -> None:
        """See `TorchPass.check`."""
        self._left(module, example, fixed)

    def _left(
        self, module: nn.Module, example: tuple[Tensor, ...], fixed: Mapping[str, str]
    ) -> dict[str, str]:
        """Return the layers that are known to keep their channels, with the reason."""
        self._check(module)
        layers = found_layers.with_weights(module)
        reasons = found_layers.ignored(layers, self.ignore, fixed, self.kind())
        if (final := found_layers.last(module, example, layers)) is not None:
            reasons[final] = "its outputs are the model's"
        if layers.keys() <= reasons.keys():
            raise CapabilityError(
                field=f"compress.passes.{self.kind()}",
                problem="there is no layer whose channels may go: "
                + "; ".join(sorted(set(reasons.values()))),
                fix="use prune_weights or quantize",
            )
        return reasons

    def _check(self, module: nn.Module) -> None:
        norms = (nn.modules.batchnorm._BatchNorm,)
        if self.importance == "bn_scale" and not any(isinstance(part, norms) for part in module.modules()):
            raise CapabilityError(
                field=f"compress.passes.{self.kind()}.importance",
                problem="the model has no BatchNorm",
                value="bn_scale",
                allowed="magnitude, taylor",
            )
        if recurrent := [name for name, part in module.named_modules() if isinstance(part, nn.RNNBase)]:
            raise CapabilityError(
                field=f"compress.passes.{self.kind()}",
                problem="channels of recurrent layers depend on each other over time, and can't be removed",
                value=", ".join(recurrent),
                fix="use prune_weights or quantize",
            )

    def _pruner(
        self,
        module: nn.Module,
        example: tuple[Any, ...],
        fixed: list[str],
        ratios: Ratios,
        rounds: int,
        importance: str = "",
    ) -> Any:
        import torch_pruning

        kinds: dict[str, Any] = {
            "magnitude": torch_pruning.importance.GroupMagnitudeImportance,
            "taylor": torch_pruning.importance.GroupTaylorImportance,
            "bn_scale": torch_pruning.importance.BNScaleImportance,
        }
        heads = attention.heads_of(module)
        with warnings.catch_warnings():
            # It prunes the last axis of bare parameters (class tokens, positions) and warns of it.
            warnings.simplefilter("ignore")
            return torch_pruning.pruner.BasePruner(
                module,
                example,
                importance=kinds[importance or self.importance](),
                global_pruning=self.scope == "global",
                pruning_ratio=ratios.default,
                pruning_ratio_dict={module.get_submodule(name): own for name, own in ratios.own.items()},
                max_pruning_ratio=max(self.most, ratios.default),
                iterative_steps=rounds,
                ignored_layers=_leaves(module, fixed),
                # Its own defaults are dictionaries that all pruners of a process share.
                num_heads=dict(heads),
                in_channel_groups={},
                out_channel_groups=dict(heads),
                channel_groups={},
            )

    @torch.no_grad()
    def _step(self, pruner: Any) -> None:
        """Remove a round's channels; of all that share them as many stay as make a multiple.

        Torch-Pruning's own rounding takes the channels of one group (of a GroupNorm, of a head) for all.
        """
        graph = pruner.DG
        for group in pruner.step(interactive=True):
            layer, prune = group[0].dep.target.module, group[0].dep.handler
            outputs = graph.is_out_channel_pruning_fn(prune)
            total = (graph.get_out_channels if outputs else graph.get_in_channels)(layer)
            parts = pruner._get_channel_groups(group)
            size, unit = total // parts, self.multiple // math.gcd(self.multiple, parts)
            kept = min(size, -(-(size - len(group[0].idxs) // parts) // unit) * unit)
            whole = graph.get_pruning_group(layer, prune, list(range(total)))
            worth = pruner.estimate_importance(whole).view(parts, size).mean(dim=0)
            gone = worth.argsort(stable=True)[: size - kept]
            if len(gone):
                chosen = torch.cat([gone + part * size for part in range(parts)])
                graph.get_pruning_group(layer, prune, chosen.tolist()).prune()

    def _fixed(self, bench: TorchBench, reasons: Mapping[str, str]) -> dict[str, str]:
        """Return the layers whose channels can't go, by trying: all together first, then each group."""
        if self._try(bench, list(reasons)) is None:
            return {}
        module = bench.served
        names = {part: name for name, part in module.named_modules()}
        graph = self._pruner(module, bench.example, list(reasons), Ratios(0.5), 1, "magnitude").DG
        found: dict[str, str] = {}
        for group in graph.get_all_groups(ignored_layers=_leaves(module, reasons)):
            together = {
                names[item.dep.target.module]
                for item in group
                if item.dep.target.module in names and graph.is_out_channel_pruning_fn(item.dep.handler)
            }
            others = [name for name in found_layers.with_weights(module) if name not in together]
            if (problem := self._try(bench, others)) is not None:
                reason = f"without some of its channels the model breaks ({problem})"
                found |= {name: reason for name in together if name in found_layers.with_weights(module)}
        return found

    def _try(self, bench: TorchBench, fixed: list[str]) -> str | None:
        """Return what goes wrong if half of the channels of a copy go, but for some layers'."""
        module = copy.deepcopy(bench.served)
        expected = tuple(bench.served(*bench.example).shape)
        try:
            self._step(self._pruner(module, bench.example, fixed, Ratios(0.5), 1, "magnitude"))
            attention.mend(module)
            shape = tuple(module(*bench.example).shape)
        # Whatever a model does with its channels, it does it in its own code.
        except Exception as error:
            return " ".join(f"{type(error).__name__} {error}".split())[:120]
        return None if shape == expected else f"its outputs are {shape}, not {expected}"

    def _curves(self, bench: TorchBench, reasons: Mapping[str, str]) -> Curves:
        """Return what removing channels costs each group of layers that lose theirs together."""
        module = bench.served
        record = bench.sensitivity()
        rows = {row["name"]: row["channels"] for row in record["layers"] if row["channels"]}
        names = {part: name for name, part in module.named_modules()}
        pruner = self._pruner(module, bench.example, list(reasons), Ratios(0.5), 1, "magnitude")
        found: dict[tuple[str, ...], Curve] = {}
        for group in pruner.DG.get_all_groups(
            ignored_layers=pruner.ignored_layers, root_module_types=pruner.root_module_types
        ):
            together = {
                names[item.dep.target.module]
                for item in group
                if names.get(item.dep.target.module) in rows
                and pruner.DG.is_out_channel_pruning_fn(item.dep.handler)
            }
            if together:
                own = [curve_of(rows[name], len(group[0].idxs), record["value"]) for name in together]
                found[tuple(sorted(together))] = added(own)
        return found

    def _ratios(self, ratio: float, curves: Curves) -> Ratios:
        """Return the ratio of each layer; those of which no sensitivity is known have ``ratio`` itself."""
        if not curves:
            return Ratios(ratio)
        most = max(self.most, ratio)
        sizes = {group: int(curve.size) for group, curve in curves.items()}
        gone = in_multiples(share_out(curves, ratio, most), sizes, self.multiple, most)
        # Half a channel less, since Torch-Pruning rounds what is kept down, whatever a float adds to it.
        shares = {group: max(0.0, count - 0.5) / sizes[group] for group, count in gone.items()}
        return Ratios(ratio, {name: share for group, share in shares.items() for name in group})

    def _target(
        self, bench: TorchBench, reasons: Mapping[str, str], curves: Curves
    ) -> tuple[float, list[dict[str, Any]]]:
        """Return the ratio that meets the target, and what was tried for a latency."""
        if self.flops is None and self.latency is None:
            return self.ratio or 0.5, []
        if self.importance == "taylor":
            _gradients(bench, self.samples)

        def candidate(ratio: float) -> nn.Module:
            """Return a copy of the model, untrained, at a ratio."""
            module = copy.deepcopy(bench.served)
            for parameter, value in zip(module.parameters(), bench.served.parameters(), strict=True):
                parameter.grad = None if value.grad is None else value.grad.clone()
            self._step(self._pruner(module, bench.example, list(reasons), self._ratios(ratio, curves), 1))
            attention.mend(module)
            return module

        if self.latency is not None:
            return ratio_search.for_latency(candidate, bench, self.latency, self.most)
        allowed = (self.flops or 1.0) * _operations(bench.served, bench.example)

        def fits(ratio: float) -> bool:
            return _operations(candidate(ratio), bench.example) <= allowed

        return ratio_search.smallest(fits, self.most), []


def _leaves(module: nn.Module, names: Iterable[str]) -> list[nn.Module]:
    """Return layers by name, but none that others are part of: what holds a bare parameter holds them too."""
    parts = (module.get_submodule(name) for name in names)
    return [part for part in parts if not any(part.children())]


def _sizes(layer: nn.Module) -> int:
    return sum(value.numel() for value in found_layers.weights(layer).values())


def _gradients(bench: TorchBench, samples: int) -> None:
    """Leave the loss's gradients over training samples in the parameters."""
    train = bench.splits.train.plain()
    rows = np.random.default_rng(bench.seed).permutation(len(train))[:samples].astype(np.int64)
    generator = torch.Generator().manual_seed(bench.seed)
    roles = bench.task.roles()
    bench.served.zero_grad()
    for part in np.array_split(rows, max(1, len(rows) // _BATCH)):
        batch = train.__getitems__(Draw(0, part))
        for phase in bench.task.phases():
            torch.autograd.backward(phase.loss(roles, batch, generator).loss_sum / len(rows))


def _operations(module: nn.Module, example: tuple[Any, ...]) -> float:
    import torch_pruning

    return float(torch_pruning.utils.count_ops_and_params(module, example)[0])
