"""Which layers of a torch module a pass may change, and what it did to each, by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fmdist.errors import CapabilityError, did_you_mean


def with_weights(module: nn.Module) -> dict[str, nn.Module]:
    """Return the parts with weights of two or more dimensions of their own: all that can be compressed."""
    return {
        name: part
        for name, part in module.named_modules()
        if any(value.ndim >= 2 for value in part.parameters(recurse=False))
    }


def weights(layer: nn.Module) -> dict[str, Tensor]:
    """Return a layer's own weights of two or more dimensions, by name."""
    return {name: value for name, value in layer.named_parameters(recurse=False) if value.ndim >= 2}


def last(module: nn.Module, example: tuple[Tensor, ...], layers: Mapping[str, nn.Module]) -> str | None:
    """Return the layer without layers of its own that runs last; None if none is called."""
    ran: list[str] = []
    handles = [
        layer.register_forward_hook(lambda *_, name=name: ran.append(name))
        for name, layer in layers.items()
        if not any(layer.children())
    ]
    run_hooked(module, example, handles)
    return ran[-1] if ran else None


def run_hooked(module: nn.Module, example: tuple[Tensor, ...], handles: Iterable[RemovableHandle]) -> None:
    """Call a module once, without gradients, and remove its hooks."""
    try:
        with torch.no_grad():
            module(*example)
    finally:
        for handle in handles:
            handle.remove()


def channel_axis(layer: nn.Module) -> int | None:
    """Return the axis of a layer's ``weight`` along which its output channels lie; None if it has none."""
    if isinstance(layer, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return 0
    if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        return 1 if layer.groups == 1 else None
    # Transformers' GPT-2 has Linear layers with their weights transposed.
    return 1 if type(layer).__name__ == "Conv1D" else None


def smallest(magnitudes: Tensor, share: float) -> Tensor:
    """Return the magnitude up to which ``share`` of them lie; below all of them if that is none."""
    count = round(share * magnitudes.numel())
    return magnitudes.kthvalue(count).values if count else magnitudes.new_tensor(-1.0)


def ignored(
    layers: Iterable[str], ignore: Sequence[str], kept: Mapping[str, str], pass_kind: str
) -> dict[str, str]:
    """Return the layers that stay as they are, with the reason.

    Args:
        layers: all names.
        ignore: names and patterns of the recipe.
        kept: the model family's own patterns -> why.
        pass_kind: for the message.

    Raises:
        CapabilityError: if one of ``ignore`` fits no layer.
    """
    names = list(layers)
    found: dict[str, str] = {}
    for pattern, reason in (*kept.items(), *((pattern, "ignored by the recipe") for pattern in ignore)):
        fitting = [name for name in names if fnmatchcase(name, pattern)]
        if not fitting and pattern in ignore:
            raise CapabilityError(
                field=f"compress.passes.{pass_kind}.ignore",
                problem="no layer has this name",
                value=pattern,
                allowed=", ".join(names),
                fix=did_you_mean(pattern, names),
            )
        found |= dict.fromkeys(fitting, reason)
    return found


def summarize(
    layers: Mapping[str, nn.Module], changed: Callable[[str], int], reasons: Mapping[str, str], default: str
) -> dict[str, Any]:
    """Return the coverage record of the manifest.

    Args:
        layers: name -> layer, as before the pass.
        changed: returns how many of a layer's weights the pass removed or made zero.
        reasons: name -> why a layer was left.
        default: for those of which nothing is known.
    """
    sizes = {name: sum(value.numel() for value in weights(layer).values()) for name, layer in layers.items()}
    touched = {name: count for name in layers if (count := changed(name))}
    return {
        "layers": len(layers),
        "changed_layers": len(touched),
        "parameters": sum(sizes.values()),
        "changed_parameters": sum(touched.values()),
        "changed": [
            {"name": name, "type": type(layers[name]).__name__, "of": sizes[name], "changed": count}
            for name, count in touched.items()
        ],
        "left": [
            {
                "name": name,
                "type": type(layer).__name__,
                "shape": list(next(iter(weights(layer).values())).shape),
                "parameters": sizes[name],
                "reason": reasons.get(name, default),
            }
            for name, layer in layers.items()
            if name not in touched
        ],
    }
