"""Weights, gradients and optimizer in shards by torch's own FSDP2.

Source: Zhao et al. 2023, arXiv:2304.11277; `torch.distributed.fsdp.fully_shard`. Accelerate's plugin
trains plain DDP on CPUs, so torch is called directly: one way for gloo and NCCL.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from fmdist.training.group import Group
from fmdist.training.strategies.blocks import blocks, computing_in
from fmdist.training.strategies.whole import Unit, check_sharded


class ShardedUnit(Unit):
    """See `fmdist.training.strategies.whole.Unit`; `whole` is a copy on the CPU.

    Args:
        accelerator: of this process.
        group: the processes that share the weights.
        module: whole.
        optimizer: over its parameters.
        precision: of the forward pass, under autocast.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        group: Group,
        module: nn.Module,
        optimizer: Optimizer,
        precision: torch.dtype,
    ) -> None:
        self._precision = precision
        super().__init__(accelerator, group, module, optimizer)

    def _prepare(self, module: nn.Module) -> None:
        self.whole = copy.deepcopy(module).cpu()
        names = {parameter: name for name, parameter in module.named_parameters()}
        groups = [[names[one] for one in group["params"]] for group in self.optimizer.param_groups]
        total = sum(parameter.numel() for parameter in module.parameters())
        mesh = init_device_mesh(self._accelerator.device.type, (self._group.size,))
        computing_in(module, self._accelerator.device, self._precision)
        for block in blocks(module):
            fully_shard(block, mesh=mesh)
        fully_shard(module, mesh=mesh)
        self.module = module
        # The parameters are other objects now.
        sharded = dict(self.module.named_parameters())
        for group, members in zip(self.optimizer.param_groups, groups, strict=True):
            group["params"] = [sharded[name] for name in members]
        check_sharded(self.held(), "weights", total, self._group, sum(map(_row, sharded.values())))

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Add up the gradients of microbatches in shards: that needs no memory for whole ones."""
        yield

    def backward(self, loss_sum: Tensor, count: float) -> None:
        """Add the gradients of ``loss_sum / count``, where both are sums over all processes."""
        torch.autograd.backward(loss_sum * (self._group.size / count))

    def update(self, max_norm: float | None) -> float | None:
        """See `Unit.update`."""
        norm = None
        if max_norm is not None:
            measured = nn.utils.clip_grad_norm_(self.module.parameters(), max_norm)
            norm = float(measured.full_tensor() if isinstance(measured, DTensor) else measured)
        if norm is None or math.isfinite(norm):
            self.optimizer.step()
        return norm

    def refresh(self) -> None:
        """Bring `whole` up to date; all processes call it together."""
        sharded = dict(self.module.named_parameters())
        with torch.no_grad():
            for name, parameter in self.whole.named_parameters():
                parameter.copy_(_whole(sharded[name]))
            buffers = dict(self.module.named_buffers())
            for name, buffer in self.whole.named_buffers():
                buffer.copy_(buffers[name])

    def put_aside(self) -> None:
        """See `Unit.put_aside`."""
        self.whole.cpu()

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's whole state; all processes call it together, and all have it."""
        state = self.optimizer.state_dict()
        state["state"] = {
            number: {name: _whole(value) for name, value in values.items()}
            for number, values in state["state"].items()
        }
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what any strategy's `state_dict` returned."""
        parameters = [one for group in self.optimizer.param_groups for one in group["params"]]
        spread = {
            number: {name: _like(value, parameters[int(number)]) for name, value in values.items()}
            for number, values in state["state"].items()
        }
        self.optimizer.load_state_dict({**state, "state": spread})

    def held(self) -> dict[str, int]:
        """See `Unit.held`."""
        local = sum(_local(parameter).numel() for parameter in self.module.parameters())
        updated = [_local(one) for group in self.optimizer.param_groups for one in group["params"]]
        return {"weights": local, "updated": sum(one.numel() for one in updated)}

    def release(self) -> None:
        """Leave the shards: what is wanted of them is in the checkpoints."""


def _whole(value: Any) -> Any:
    return value.full_tensor() if isinstance(value, DTensor) else value


def _local(value: Tensor) -> Tensor:
    return value.to_local() if isinstance(value, DTensor) else value


def _like(value: Any, parameter: Tensor) -> Any:
    """Return a whole tensor in shards like the parameter's; anything else as it is."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape or not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)


def _row(parameter: Tensor) -> int:
    # Shards are of whole rows, so that the first process may have one more of each parameter.
    return parameter[0].numel() if parameter.ndim else 1
