"""How a module differs from the one that its recipe builds, as JSON, and that difference made again.

Removing channels changes the sizes of layers, and factoring one replaces it by two. Both are recorded, so
that a module built from the recipe takes the smaller weights; see `Change`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fmdist.errors import CheckpointError, CompressionError

Change = Mapping[str, Any]
"""One of, with ``module``, the dotted name (empty for the module itself):

- ``{"module", "attributes": {name: int or list}, "tensors": {name: shape}}``: a layer of other sizes;
- ``{"module", "rank": R}``: a Linear or convolution made into two, in an `nn.Sequential`: the first from its
  inputs to R features, with the layer's kernel and without bias, the second from R to its outputs;
- ``{"module", "identity": true}``: a layer that passes on what it gets.
"""

Layout = dict[str, tuple[str, dict[str, Any], dict[str, list[int]]]]
"""Module name -> its type, its whole numbers (and tuples of them), the shapes of its own tensors."""


def layout(module: nn.Module) -> Layout:
    """Return the sizes of all parts of a module."""
    found: Layout = {}
    for name, part in module.named_modules():
        attributes = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in vars(part).items()
            if not key.startswith("_") and key != "training" and _is_size(value)
        }
        tensors = {
            key: list(value.shape)
            for key, value in (*part._parameters.items(), *part._buffers.items())
            if value is not None
        }
        found[name] = (type(part).__qualname__, attributes, tensors)
    return found


def resized(before: Layout, after: Layout) -> list[Change]:
    """Return what changed in the parts that both have, under the same name and of the same type."""
    changes: list[Change] = []
    for name, (kind, attributes, tensors) in after.items():
        if name not in before or before[name][0] != kind or before[name] == after[name]:
            continue
        _, old_attributes, old_tensors = before[name]
        changes.append(
            {
                "module": name,
                "attributes": {k: v for k, v in attributes.items() if old_attributes.get(k) != v},
                "tensors": {k: v for k, v in tensors.items() if old_tensors.get(k) != v},
            }
        )
    return changes


def apply(module: nn.Module, changes: Sequence[Change]) -> None:
    """Give a module the sizes of another; its weights have no meaning until they are loaded.

    Raises:
        CheckpointError: if it has no such part.
        CompressionError: if a table that isn't saved would change.
    """
    parts = dict(module.named_modules())
    for change in changes:
        name = change["module"]
        if name not in parts:
            raise CheckpointError(
                field="architecture",
                problem="the model has no such part",
                value=name,
                fix="build the model of the recipe that the weights belong to",
            )
        if "rank" in change:
            replace(module, name, factors(parts[name], change["rank"]))
            parts = dict(module.named_modules())
            continue
        if "identity" in change:
            replace(module, name, nn.Identity())
            continue
        part = parts[name]
        for key, value in change["attributes"].items():
            setattr(part, key, tuple(value) if isinstance(value, list) else value)
        for key, shape in change["tensors"].items():
            if key in part._non_persistent_buffers_set:
                raise CompressionError(
                    field="compress.passes",
                    problem=f"the table '{key}' of '{name}' isn't among the weights, so its size must stay",
                    fix="name the layers that share its size in ignore",
                )
            old = getattr(part, key)
            # A bias may be new: what was folded into the layer.
            new = torch.zeros(shape, dtype=torch.float32 if old is None else old.dtype)
            own = old is None or isinstance(old, nn.Parameter)
            setattr(part, key, nn.Parameter(new) if own else new)


def factors(layer: nn.Module, rank: int) -> nn.Sequential:
    """Return two layers, with no weights of meaning, that a Linear or convolution of low rank equals."""
    if isinstance(layer, nn.Linear):
        return nn.Sequential(
            nn.Linear(layer.in_features, rank, bias=False),
            nn.Linear(rank, layer.out_features, bias=layer.bias is not None),
        )
    assert isinstance(layer, nn.Conv2d)
    first = nn.Conv2d(
        layer.in_channels,
        rank,
        layer.kernel_size,  # type: ignore[arg-type]
        layer.stride,  # type: ignore[arg-type]
        layer.padding,  # type: ignore[arg-type]
        layer.dilation,  # type: ignore[arg-type]
        bias=False,
        padding_mode=layer.padding_mode,
    )
    return nn.Sequential(first, nn.Conv2d(rank, layer.out_channels, 1, bias=layer.bias is not None))


def replace(module: nn.Module, name: str, new: nn.Module) -> None:
    """Put ``new`` in the place of a part of ``module``."""
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, new)


def _is_size(value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(isinstance(item, int) and not isinstance(item, bool) for item in value)
    return isinstance(value, int) and not isinstance(value, bool)
