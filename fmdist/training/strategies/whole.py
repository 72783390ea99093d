"""Every process holds the whole module and its optimizer: alone, or averaging gradients (DDP)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from fmdist.errors import TrainingError
from fmdist.training.group import Group


class Unit:
    """What trains one role: its module, its optimizer, and the way of gradients from one to the other.

    This one holds both whole; the shards of others are made whole by `refresh` and `state_dict`.

    Args:
        accelerator: of this process.
        group: the processes that train together.
        module: with the weights that training goes on from, on its device.
        optimizer: over its parameters.

    Raises:
        TrainingError: if Accelerate gave something else than was asked for.
    """

    def __init__(
        self, accelerator: Accelerator, group: Group, module: nn.Module, optimizer: Optimizer
    ) -> None:
        self.whole = module
        """All weights, as of the last `refresh`: what is evaluated and saved."""
        self.optimizer = optimizer
        """Its groups carry the learning rate."""
        self.scaled = accelerator.scaler is not None
        """Whether losses are scaled (fp16): then an update can be skipped by the scaler."""
        self._accelerator = accelerator
        self._group = group
        self._share = 0.0, torch.tensor(0.0)
        self._prepare(module)

    def _prepare(self, module: nn.Module) -> None:
        prepared, wrapped = self._accelerator.prepare(module, self.optimizer)
        if self._group.size > 1 and not isinstance(prepared, DistributedDataParallel):
            raise TrainingError(
                problem=f"Accelerate gave {type(prepared).__name__} for {self._group.size} process(es)"
            )
        self.module: nn.Module = prepared
        """What the losses call."""
        # Accelerate's wrapper adds tens of microseconds a step and does nothing where no scaler is involved.
        self._step = wrapped.step if self.scaled else self.optimizer.step

    def zero_grad(self) -> None:
        """Forget the gradients."""
        self.optimizer.zero_grad()

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Keep the gradients of a microbatch here, unless it is the step's last."""
        if last or self._group.size == 1:
            yield
        else:
            with self._accelerator.no_sync(self.module):
                yield

    def backward(self, loss_sum: Tensor, count: float) -> None:
        """Add the gradients of ``loss_sum / count``, where both are sums over all processes."""
        # Gradients are averaged over the processes.
        count /= self._group.size
        if self.scaled:
            self._accelerator.backward(loss_sum / count)
            return
        # The quotient's gradient given directly: a division on the graph would cost two more kernels.
        # Only the last is kept: with class weights every batch has another count.
        if self._share[0] != count:
            share = torch.tensor(1.0 / count, dtype=loss_sum.dtype, device=loss_sum.device)
            self._share = count, share
        torch.autograd.backward(loss_sum, self._share[1])

    def update(self, max_norm: float | None) -> float | None:
        """Update the weights, unless the gradients aren't finite.

        Args:
            max_norm: the L2 norm to which larger gradients are scaled; None leaves them.

        Returns:
            The norm before, on all processes alike; None without ``max_norm``. Synchronizes CPU and GPU then.
        """
        norm = None if max_norm is None else self._clip(max_norm)
        # Under a loss scaler an infinite norm is everyday: the scaler skips that update by itself.
        if norm is None or math.isfinite(norm) or self.scaled:
            self._step()
        return norm

    def _clip(self, max_norm: float) -> float:
        if self.scaled:
            self._accelerator.unscale_gradients(self.optimizer)
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return float(nn.utils.clip_grad_norm_(parameters, max_norm))

    def refresh(self) -> None:
        """Bring `whole` up to date; all processes call it together."""

    def put_aside(self) -> None:
        """Free the device of a copy that was scored."""

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's whole state as torch has it, on the first process; all call it together."""
        return self.optimizer.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, of any strategy and number of processes."""
        self.optimizer.load_state_dict(dict(state))

    def held(self) -> dict[str, int]:
        """Return how many numbers are here: ``weights``, and those ``updated`` by the optimizer here."""
        updated = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        return {
            "weights": sum(parameter.numel() for parameter in self.module.parameters()),
            "updated": sum(parameter.numel() for parameter in updated),
        }

    def release(self) -> None:
        """Give the module back as it came: on the CPU, its forward not wrapped in autocast."""
        # Not by Accelerate's `unwrap_model`, which imports DeepSpeed wherever it is installed: seconds.
        if self.whole.__dict__.pop("_original_forward", None) is not None:
            del self.whole.forward
        self.whole.cpu()


def check_sharded(held: Mapping[str, int], key: str, total: int, group: Group, padding: int) -> None:
    """Check that this process holds its part of the numbers and no more.

    Args:
        held: see `Unit.held`.
        key: of ``held``.
        total: of the whole module.
        group: the processes that share them.
        padding: numbers that a shard may have beyond its part.

    Raises:
        TrainingError: if it holds more: sharding was asked for and not done.
    """
    if held[key] > -(-total // group.size) + padding:
        raise TrainingError(
            problem=f"{key}: {group.size} processes were to share {total}, and this one holds {held[key]}"
        )
