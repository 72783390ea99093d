"""What strategies do to a module's repeated blocks: sharding them one by one, recomputing them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate.utils import convert_outputs_to_fp32
from torch import nn
from torch.distributed._composable.checkpoint_activation import checkpoint

from fmdist.training.dropout import Draws


def blocks(module: nn.Module) -> list[nn.Module]:
    """Return the outermost members with parameters of lists and sequences with at least two of them."""
    found: list[nn.Module] = []
    members = [part for part in module.children() if any(True for _ in part.parameters())]
    if isinstance(module, nn.ModuleList | nn.Sequential) and len(members) > 1:
        return members
    for part in members:
        found += blocks(part)
    return found


def computing_in(module: nn.Module, device: torch.device, precision: torch.dtype) -> None:
    """Let a module's forward run under autocast and return float32, as Accelerate does; float32 is left."""
    if precision is not torch.float32:
        computed = torch.autocast(device.type, precision)(module.forward)
        module.forward = convert_outputs_to_fp32(computed)


def recompute(module: nn.Module, draws: Draws) -> int:
    """Let each of a module's blocks keep its input alone and compute the rest again in the backward pass.

    Source: Chen et al. 2016, arXiv:1604.06174; torch's composable checkpoint. Dropout draws the same again.

    Returns:
        How many blocks there are.
    """

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), draws.again_from(draws.place)

    found = blocks(module)
    for block in found:
        checkpoint(block, context_fn=contexts)
    return len(found)
