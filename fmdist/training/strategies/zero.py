"""Optimizer states, gradients and weights in shards by DeepSpeed's ZeRO, through Accelerate's plugin.

Source: Rajbhandari et al. 2020, arXiv:1910.02054; Ren et al. 2021, arXiv:2101.06840 (offload).

DeepSpeed's own checkpoints are pickles of shards that only as many processes can read. Here the shards of
every parameter are put together, so that what is saved is what the other strategies save and read.
"""

from __future__ import annotations

import copy
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DeepSpeedPlugin, DistributedType
from torch import Tensor, nn
from torch.optim import Optimizer

from fmdist.errors import TrainingError
from fmdist.training.group import Group
from fmdist.training.scaling import ScalingConfig
from fmdist.training.strategies.blocks import computing_in
from fmdist.training.strategies.whole import Unit, check_sharded

_SHARED = ("step", "mu_product")
"""States of torch's optimizers that a whole group has in common."""

_SHARD = "shard"
"""Marks a tensor of which every process has a part."""


class Fragment(NamedTuple):
    """Where the part of a parameter lies that this process updates."""

    flat: Tensor
    """What the optimizer updates: parts of many parameters, one after the other."""
    flat_start: int
    start: int
    """In the flattened parameter."""
    size: int


def plugin(scaling: ScalingConfig, clip_norm: float | None, device: str) -> DeepSpeedPlugin:
    """Return the plugin that makes Accelerate use ZeRO as a recipe asks, for one role and sort of device."""
    # Read by Accelerate, whose plugin alone changes nothing. The shared-memory operation would be compiled
    # at first use, for 20 s, and is no faster here.
    os.environ |= {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": device}
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    # DeepSpeed calls collectives by names that torch has renamed.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    stage = int(scaling.strategy.removeprefix("zero"))
    zero: dict[str, Any] = {"stage": stage}
    if scaling.offload is not None:
        place = {"device": scaling.offload, "pin_memory": scaling.gpus_per_worker > 0}
        zero["offload_optimizer"] = place
        if stage == 3:
            zero["offload_param"] = place
    return DeepSpeedPlugin(
        hf_ds_config={
            # The loop cuts batches and accumulates; DeepSpeed wants a number all the same.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": clip_norm or 0.0,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 2**62,
        }
    )


def accelerator_for(role: str, first: Accelerator) -> Accelerator:
    """Return the accelerator that prepares a role, its plugin selected: DeepSpeed wants one for each."""
    plugins: dict[str, Any] = first.state.deepspeed_plugins
    own = first if role == next(iter(plugins)) else Accelerator()
    own.state.select_deepspeed_plugin(role)
    return own


class ZeroUnit(Unit):
    """See `fmdist.training.strategies.whole.Unit`; at stage 3 `whole` is a copy on the CPU.

    Args:
        accelerator: of this process, with the `plugin` of this role selected.
        group: the processes that share the optimizer.
        module: whole.
        optimizer: over its parameters; it must update each number by itself alone.
        precision: of the forward pass, under autocast; weights stay float32.
        stage: 1: optimizer states are shared out, 2: gradients too, 3: weights too.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        group: Group,
        module: nn.Module,
        optimizer: Optimizer,
        precision: torch.dtype,
        stage: int,
    ) -> None:
        self._precision = precision
        self._stage = stage
        self._layout = [list(one["params"]) for one in optimizer.param_groups]
        super().__init__(accelerator, group, module, optimizer)

    def _prepare(self, module: nn.Module) -> None:
        if self._stage == 3:
            self.whole = copy.deepcopy(module).cpu()
        totals = {"updated": sum(parameter.numel() for parameter in chain(*self._layout))}
        if self._stage == 3:
            totals["weights"] = sum(parameter.numel() for parameter in module.parameters())
        # Each group is padded for the alignment of its shards; at stage 3 each parameter is.
        padding = 8 * self._group.size * sum(1 for _ in module.parameters())
        computing_in(module, self._accelerator.device, self._precision)
        self._engine: Any = self._accelerator.prepare(module, self.optimizer)[0]
        kind = self._accelerator.distributed_type
        stage = getattr(self._engine, "zero_optimization_stage", lambda: 0)()
        if kind != DistributedType.DEEPSPEED or stage != self._stage:
            raise TrainingError(
                problem=f"asked for ZeRO stage {self._stage}, but Accelerate set up {kind}, stage {stage}"
            )
        self.module = self._engine
        self._zero: Any = self._engine.optimizer
        for key, total in totals.items():
            check_sharded(self.held(), key, total, self._group, padding)

    def zero_grad(self) -> None:
        """Do nothing: DeepSpeed forgets the gradients after each update."""

    @contextmanager
    def accumulating(self, last: bool) -> Iterator[None]:
        """Say whether the microbatch is the step's last."""
        self._engine.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss_sum: Tensor, count: float) -> None:
        """Add the gradients of ``loss_sum / count``, where both are sums over all processes."""
        self._engine.backward(loss_sum * (self._group.size / count))

    def update(self, max_norm: float | None) -> float | None:
        """See `Unit.update`; the norm is infinite if it isn't finite, also without ``max_norm``."""
        self._engine.step()
        if self._zero.overflow:
            return float("inf")
        return None if max_norm is None else float(self._engine.get_global_grad_norm())

    def refresh(self) -> None:
        """Bring `whole` up to date; all processes call it together."""
        if self._stage < 3:
            return
        import deepspeed

        trained = self._engine.module
        copies = dict(self.whole.named_parameters())
        with torch.no_grad():
            for name, parameter in trained.named_parameters():
                with deepspeed.zero.GatheredParameters([parameter]):
                    copies[name].copy_(parameter)
            buffers = dict(trained.named_buffers())
            for name, buffer in self.whole.named_buffers():
                buffer.copy_(buffers[name])

    def put_aside(self) -> None:
        """See `Unit.put_aside`."""
        if self._stage == 3:
            self.whole.cpu()

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's whole state, on the first process; all call it together."""
        numbers = {parameter: number for number, parameter in enumerate(chain(*self._layout))}
        groups: list[dict[str, Any]] = []
        for group, parameters in zip(self.optimizer.param_groups, self._layout, strict=True):
            kept = {name: value for name, value in group.items() if name != "params"}
            groups.append({**kept, "params": [numbers[parameter] for parameter in parameters]})
        return {"state": self._whole_states(numbers), "param_groups": groups}

    def _whole_states(self, numbers: Mapping[Tensor, int]) -> dict[int, dict[str, Any]]:
        """Put the shards of every parameter's state together; tensors are right on the first process."""
        parts = {number: self._fragment(parameter) for parameter, number in numbers.items()}
        states = {number: self._state(part) for number, part in parts.items() if part is not None}
        own = {number: _without_shards(state, parts[number]) for number, state in states.items()}
        known: dict[int, dict[str, Any]] = {}
        # Who has no part of a parameter doesn't know what there is.
        for told in self._group.gather(own):
            for number, values in told.items():
                known.setdefault(number, {}).update(values)
        found: dict[int, dict[str, Any]] = {}
        for parameter, number in numbers.items():
            for name, value in known.get(number, {}).items():
                if isinstance(value, str) and value == _SHARD:
                    value = self._together(parameter, parts[number], states.get(number, {}).get(name))
                found.setdefault(number, {})[name] = value
        return found

    def _together(self, parameter: Tensor, part: Fragment | None, flat: Tensor | None) -> Tensor:
        whole = torch.zeros(_size(parameter), device=self._accelerator.device)
        if part is not None and flat is not None:
            piece = flat.narrow(0, part.flat_start, part.size)
            whole.narrow(0, part.start, part.size).copy_(piece)
        dist.reduce(whole, dst=0)
        return whole.reshape(_shape(parameter)).cpu()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what any strategy's `state_dict` returned."""
        base = self._base
        for group, saved in zip(self.optimizer.param_groups, state["param_groups"], strict=True):
            group.update({name: value for name, value in saved.items() if name != "params"})
        numbers = {parameter: number for number, parameter in enumerate(chain(*self._layout))}
        for parameter, number in numbers.items():
            part = self._fragment(parameter)
            if part is None:
                continue
            for name, value in state["state"].get(number, {}).items():
                kept = base.state[part.flat]
                if not isinstance(value, Tensor) or name in _SHARED or value.shape != _shape(parameter):
                    kept[name] = value.clone() if isinstance(value, Tensor) else value
                    continue
                if name not in kept:
                    kept[name] = torch.zeros_like(part.flat)
                piece = value.flatten().narrow(0, part.start, part.size)
                kept[name].narrow(0, part.flat_start, part.size).copy_(piece)

    @property
    def _base(self) -> Any:
        return self._zero.optimizer

    def _state(self, part: Fragment) -> dict[str, Any]:
        return dict(self._base.state.get(part.flat, {}))

    def _fragment(self, parameter: Any) -> Fragment | None:
        """Return where this process's part of a parameter lies; None if it has none."""
        if self._stage == 3:
            group, flat_start, size = self._zero.grad_position[self._zero.get_param_id(parameter)]
            start = size * self._group.rank
            # The last processes' parts are padded.
            size = min(size, _size(parameter) - start)
            flat = self._zero.fp32_partitioned_groups_flat[group]
            return Fragment(flat, flat_start, start, size) if size > 0 else None
        mapping = parameter._hp_mapping
        if mapping is None:
            return None
        here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
        flat = self._zero.single_partition_of_fp32_groups[mapping.param_group_index]
        return Fragment(flat, here.start, there.start, here.numel)

    def held(self) -> dict[str, int]:
        """See `Unit.held`."""
        parameters = list(self._engine.module.parameters())
        if self._stage == 3:
            flats = self._zero.fp32_partitioned_groups_flat
            weights = sum(parameter.ds_tensor.numel() for parameter in parameters)
        else:
            flats = self._zero.single_partition_of_fp32_groups
            weights = sum(parameter.numel() for parameter in parameters)
        return {"weights": weights, "updated": sum(flat.numel() for flat in flats)}

    def release(self) -> None:
        """Leave the shards: what is wanted of them is in the checkpoints."""
        self._engine.destroy()


def _without_shards(state: Mapping[str, Any], part: Fragment | None) -> dict[str, Any]:
    """Return a state with a mark in the place of what is as long as the flat tensor."""
    size = 0 if part is None else part.flat.numel()
    return {
        name: _SHARD if isinstance(value, Tensor) and value.ndim and value.numel() == size else value
        for name, value in sorted(state.items())
    }


def _size(parameter: Any) -> int:
    """Return a parameter's size, which is 0 by itself while its shards are apart."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _shape(parameter: Any) -> torch.Size:
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))
