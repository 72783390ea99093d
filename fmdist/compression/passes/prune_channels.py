"""Channels removed from all layers that share them: a smaller dense model, faster on every runtime.

Source: Torch-Pruning, Fang et al. 2023 (arXiv:2301.12900), which finds the layers that must change together.
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import nn

from fmdist.compression.passes import layers as found_layers
from fmdist.compression.passes.base import Reduced, TorchBench, TorchPass
from fmdist.contracts import Draw
from fmdist.errors import CapabilityError

REQUIRES = ("compress",)

_HEADS = ("num_heads", "heads", "num_attention_heads")
"""What attention modules call the number of their heads."""

_PROJECTIONS = ("query", "key", "value", "q_proj", "k_proj", "v_proj", "qkv", "query_key_value")

_BATCH, _SEARCH = 64, 12

log = logging.getLogger(__name__)


class Config(TorchPass):
    """Rounds of: remove the least important channels, train on."""

    order: ClassVar[int] = 10

    ratio: float | None = Field(default=None, gt=0, lt=1)
    """Share of the channels to remove of every layer (`uniform`) or of all together (`global`); 0.5 unless
    `flops` is given."""
    flops: float | None = Field(default=None, gt=0, lt=1)
    """Share of the multiplications that may stay: the ratio is found by bisection."""
    scope: Literal["uniform", "global"] = "uniform"
    """`global` compares channels of all layers, and may thin some of them out."""
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
        if self.ratio is not None and self.flops is not None:
            message = "give ratio or flops, not both"
            raise ValueError(message)
        return self

    def reduce(self, bench: TorchBench) -> Reduced:
        """See `TorchPass.reduce`."""
        module = bench.served
        layers = found_layers.with_weights(module)
        self._check(module)
        reasons = found_layers.ignored(layers, self.ignore, bench.fixed, self.kind())
        reasons[_last(module, bench.example, layers)] = "its outputs are the model's"
        if layers.keys() <= reasons.keys():
            raise CapabilityError(
                field=f"compress.passes.{self.kind()}",
                problem="there is no layer whose channels may go: "
                + "; ".join(sorted(set(reasons.values()))),
                fix="use prune_weights or quantize",
            )
        reasons |= self._fixed(bench, reasons)
        before = {name: _sizes(layer) for name, layer in layers.items()}
        ratio = self.ratio or (0.5 if self.flops is None else self._ratio_for(bench, reasons))
        pruner = self._pruner(module, bench.example, list(reasons), ratio, self.rounds)
        rounds = []
        for number in range(1, self.rounds + 1):
            if self.importance == "taylor":
                _gradients(bench, self.samples)
            self._step(pruner)
            module.zero_grad()
            _mend_attention(module)
            if self.finetune is not None:
                bench.finetune(self.finetune, f"round-{number}")
            rounds.append(
                {
                    "setting": f"round {number}: {ratio * number / self.rounds:.1%} of the channels",
                    "value": bench.value(),
                    "parameters": sum(value.numel() for value in module.parameters()),
                    "nonzero": sum(int(value.count_nonzero()) for value in module.parameters()),
                }
            )
            log.info("%s: %.4g on validation", rounds[-1]["setting"], rounds[-1]["value"])
        # Of the layers as they were, a copy: those in `layers` have changed.
        after = {name: _sizes(layer) for name, layer in found_layers.with_weights(module).items()}
        default = f"fewer than {self.multiple} channels could go, or it isn't known how they depend on others"
        coverage = found_layers.summarize(layers, lambda name: before[name] - after[name], reasons, default)
        coverage["parameters"] = sum(before.values())
        for changed in coverage["changed"]:
            changed["of"] = before[changed["name"]]
        return Reduced(coverage, candidates=rounds)

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
        ratio: float,
        rounds: int,
        importance: str = "",
    ) -> Any:
        import torch_pruning

        kinds: dict[str, Any] = {
            "magnitude": torch_pruning.importance.GroupMagnitudeImportance,
            "taylor": torch_pruning.importance.GroupTaylorImportance,
            "bn_scale": torch_pruning.importance.BNScaleImportance,
        }
        heads = _heads(module)
        with warnings.catch_warnings():
            # It prunes the last axis of bare parameters (class tokens, positions) and warns of it.
            warnings.simplefilter("ignore")
            return torch_pruning.pruner.BasePruner(
                module,
                example,
                importance=kinds[importance or self.importance](),
                global_pruning=self.scope == "global",
                pruning_ratio=ratio,
                max_pruning_ratio=max(self.most, ratio),
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
        graph = self._pruner(module, bench.example, list(reasons), 0.5, 1, "magnitude").DG
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
            self._step(self._pruner(module, bench.example, fixed, 0.5, 1, "magnitude"))
            _mend_attention(module)
            shape = tuple(module(*bench.example).shape)
        # Whatever a model does with its channels, it does it in its own code.
        except Exception as error:
            return " ".join(f"{type(error).__name__} {error}".split())[:120]
        return None if shape == expected else f"its outputs are {shape}, not {expected}"

    def _ratio_for(self, bench: TorchBench, reasons: Mapping[str, str]) -> float:
        """Return the smallest ratio that leaves no more than `flops` of the multiplications."""
        allowed = (self.flops or 1.0) * _operations(bench.served, bench.example)
        if self.importance == "taylor":
            _gradients(bench, self.samples)
        low, high = 0.0, self.most
        for _ in range(_SEARCH):
            ratio = (low + high) / 2
            module = copy.deepcopy(bench.served)
            for parameter, value in zip(module.parameters(), bench.served.parameters(), strict=True):
                parameter.grad = None if value.grad is None else value.grad.clone()
            self._step(self._pruner(module, bench.example, list(reasons), ratio, 1))
            _mend_attention(module)
            low, high = (low, ratio) if _operations(module, bench.example) <= allowed else (ratio, high)
        return high


def _leaves(module: nn.Module, names: Iterable[str]) -> list[nn.Module]:
    """Return layers by name, but none that others are part of: what holds a bare parameter holds them too."""
    parts = (module.get_submodule(name) for name in names)
    return [part for part in parts if not any(part.children())]


def _sizes(layer: nn.Module) -> int:
    return sum(value.numel() for value in found_layers.weights(layer).values())


def _last(module: nn.Module, example: tuple[Any, ...], layers: Mapping[str, nn.Module]) -> str:
    """Return the layer that runs last."""
    ran: list[str] = []
    handles = [
        layer.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, layer in layers.items()
        if not any(layer.children())
    ]
    try:
        with torch.no_grad():
            module(*example)
    finally:
        for handle in handles:
            handle.remove()
    return ran[-1]


def _heads(module: nn.Module) -> dict[nn.Module, int]:
    """Return the projections of attention -> number of heads, whose widths must stay equal."""
    found: dict[nn.Module, int] = {}
    for part in module.modules():
        count = next((value for key in _HEADS if isinstance(value := getattr(part, key, None), int)), None)
        if count is None:
            continue
        if isinstance(part, nn.MultiheadAttention):
            found[part] = count
        for name in _PROJECTIONS:
            if isinstance(projection := getattr(part, name, None), nn.Linear):
                found[projection] = count
    return found


def _mend_attention(module: nn.Module) -> None:
    """Tell attention modules the width of a head, where they keep it beside their weights."""
    for part in module.modules():
        query = next(
            (
                found
                for name in ("query", "q_proj")
                if isinstance(found := getattr(part, name, None), nn.Linear)
            ),
            None,
        )
        heads = next((value for key in _HEADS if isinstance(value := getattr(part, key, None), int)), None)
        if heads is None:
            continue
        packed = getattr(part, "qkv", None)
        width = query.out_features if query is not None else 0
        if isinstance(packed, nn.Linear):
            width = packed.out_features // 3
        for key, value in (
            ("all_head_size", width),
            ("attention_head_size", width // heads),
            ("head_dim", width // heads),
        ):
            if width and isinstance(getattr(part, key, None), int):
                setattr(part, key, value)


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
