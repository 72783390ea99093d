"""Low-rank adapters in a module (Hu et al. 2021, arXiv:2106.09685), through peft: in, and merged again."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from typing import Any

import torch
from torch import nn

from fmdist.errors import CapabilityError
from fmdist.training.names import matching
from fmdist.training.transfer_config import LoraConfig

ADAPTABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
"""Layers that can have an adapter."""

_CLOSED = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
"""They read the weights of their layers themselves, so that an adapter there would do nothing."""


def add_adapters(module: nn.Module, config: LoraConfig, head: Collection[str], seed: int) -> None:
    """Put adapters into ``module``; only they and ``head`` are trained. Its outputs stay what they were.

    Args:
        module: changed in place.
        config: which layers get one.
        head: names of parameters that are trained whole.
        seed: keys the adapters' initial weights.

    Raises:
        CapabilityError: if a pattern matches nothing, or a layer that can't have an adapter.
    """
    targets = adapter_targets(module, config, head)
    # Imported here: peft loads transformers, which takes seconds.
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    settings = PeftConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        # An expression for the whole name: peft takes the names of a list for endings.
        target_modules="|".join(map(re.escape, targets)),
    )
    trained = {name: parameter for name, parameter in module.named_parameters() if name in head}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            inject_adapter_in_model(settings, module)
        except ValueError as error:
            raise CapabilityError(
                field="transfer.lora", problem=f"peft refuses these layers ({error})", value=targets
            ) from error
    for parameter in trained.values():
        parameter.requires_grad_(True)


def adapter_targets(module: nn.Module, config: LoraConfig, head: Collection[str]) -> list[str]:
    """Return the names of the layers that get an adapter.

    Raises:
        CapabilityError: if a pattern matches nothing, or a layer that can't have an adapter.
    """
    uses = Counter(id(value) for _, value in module.named_parameters(remove_duplicate=False))
    closed = [name for name, part in module.named_modules() if isinstance(part, _CLOSED)]
    read = {
        f"{name}.{layer}" if name else layer
        for name, part in module.named_modules()
        for layer in getattr(part, "read_elsewhere", ())
    }
    heads = {name.rpartition(".")[0] for name in head}
    layers: dict[str, nn.Module] = {}
    for name, part in module.named_modules():
        if name and name not in heads and any(True for _ in part.parameters(recurse=False)):
            layers[name] = part
    chosen = matching(config.targets, layers, "transfer.lora.targets", "layer")
    refused: dict[str, str] = {}
    for name in chosen:
        part = layers[name]
        if not isinstance(part, ADAPTABLE):
            refused[name] = type(part).__name__
        elif getattr(part, "groups", 1) > 1:
            refused[name] = "a grouped convolution, with which no adapter can be merged"
        elif any(name.startswith(f"{outer}.") for outer in closed):
            refused[name] = "inside a layer of torch.nn that reads its weights itself"
        elif any(uses[id(value)] > 1 for value in part.parameters(recurse=False)):
            refused[name] = "shares its weights with another layer"
        elif name in read:
            refused[name] = "its weights are also read past the layer"
        elif not any(type(part).forward is kind.forward for kind in ADAPTABLE):
            refused[name] = f"{type(part).__name__} computes something of its own"
    if refused:
        raise CapabilityError(
            field="transfer.lora.targets",
            problem="these layers can't have an adapter: "
            + ", ".join(f"{name} ({reason})" for name, reason in refused.items()),
            value=list(config.targets),
            allowed=f"patterns that match {', '.join(kind.__name__ for kind in ADAPTABLE)} layers only",
        )
    return chosen


def merge_adapters(module: nn.Module) -> None:
    """Add adapters to the weights that they adapt and take them out, in place; without any, do nothing."""
    adapted = [(name, part) for name, part in module.named_modules() if hasattr(part, "get_base_layer")]
    for name, part in adapted:
        layer: Any = part
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, layer.get_base_layer())
    if adapted:
        del module.peft_config
        module.requires_grad_(True)
