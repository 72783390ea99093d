"""The engine: Accelerate places, scales and synchronizes; the loop says what is computed.

Distribution, mixed precision and the trackers all come from one `Accelerator`. The engine checks that what it
got is what was asked, since Accelerate falls back to plain training without an error.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import (
    DDPCommunicationHookType,
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    send_to_device,
)
from torch import nn
from torch.optim import Optimizer

from fmdist import component
from fmdist.contracts import Batch, Context
from fmdist.environment import kept_variables
from fmdist.errors import CapabilityError, TrainingError
from fmdist.memory import freed_is_kept
from fmdist.training.config import TrainConfig
from fmdist.training.dropout import Draws
from fmdist.training.group import Group
from fmdist.training.scaling import ScalingConfig
from fmdist.training.strategies.blocks import recompute
from fmdist.training.strategies.whole import Unit


class Engine:
    """One process's part of a training run. Create it through `engine`."""

    def __init__(
        self, accelerator: Accelerator, config: TrainConfig, group: Group, scaling: ScalingConfig | None
    ) -> None:
        self.accelerator = accelerator
        self.device: torch.device = accelerator.device
        self.group = group
        """The processes that train together."""
        self.draws = Draws()
        """Keys dropout by sample, where it is drawn so."""
        self.units: dict[str, Unit] = {}
        """What trains each role."""
        self.held: dict[str, list[dict[str, int]]] = {}
        """Role -> what each process holds of it; see `Unit.held`."""
        self._by_sample = scaling is not None
        self._scaling = scaling or ScalingConfig()
        self._config = config
        self._moves = self.device.type != "cpu"

    def prepare(self, role: str, module: nn.Module, optimizer: Optimizer) -> Unit:
        """Return what trains a role, laid out on the processes as the recipe's ``scaling`` says."""
        if self._config.compile:
            module.compile()
        if self._scaling.activation_checkpointing and not recompute(module, self.draws):
            raise CapabilityError(
                field="scaling.activation_checkpointing",
                problem=f"the module '{role}' has no list of layers, so there is nothing to recompute",
                value=True,
                fix="leave it out",
            )
        self.units[role] = unit = self._unit(role, module, optimizer)
        self.held[role] = self.group.gather(unit.held())
        return unit

    def _unit(self, role: str, module: nn.Module, optimizer: Optimizer) -> Unit:
        strategy = self._scaling.strategy
        if strategy == "ddp":
            return Unit(self.accelerator, self.group, module, optimizer)
        precision = torch.bfloat16 if self._config.precision == "bf16" else torch.float32
        if strategy == "fsdp":
            from fmdist.training.strategies.fsdp import ShardedUnit

            return ShardedUnit(self.accelerator, self.group, module, optimizer, precision)
        from fmdist.training.strategies.zero import ZeroUnit, accelerator_for

        stage = int(strategy.removeprefix("zero"))
        own = accelerator_for(role, self.accelerator)
        return ZeroUnit(own, self.group, module, optimizer, precision, stage)

    def place(self, batch: Batch) -> Batch:
        """Return the batch on the engine's device."""
        if not self._moves:
            return batch
        placed: Batch = send_to_device(batch, self.device, non_blocking=True)
        return placed

    def refresh(self) -> None:
        """Bring the whole copies of shards up to date; all processes call it together."""
        for unit in self.units.values():
            unit.refresh()

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Have whole copies of shards on the device while entered."""
        try:
            for unit in self.units.values():
                unit.whole.to(self.device)
            yield
        finally:
            for unit in self.units.values():
                unit.put_aside()

    def release(self) -> None:
        """Give trained modules back as they came: on the CPU, their forward not wrapped in autocast."""
        for unit in self.units.values():
            unit.release()

    def scaler_state(self) -> dict[str, float] | None:
        """Return the loss scaler's state, or None without one."""
        return None if self.accelerator.scaler is None else dict(self.accelerator.scaler.state_dict())

    def load_scaler_state(self, state: Mapping[str, float] | None) -> None:
        """Restore what `scaler_state` returned."""
        if self.accelerator.scaler is not None and state is not None:
            self.accelerator.scaler.load_state_dict(dict(state))

    def seed(self, generator: torch.Generator, seed: int) -> None:
        """Seed ``generator`` and torch's global generators, which dropout reads.

        Not `torch.manual_seed`: that takes longer (160 us) than a small model's step.
        """
        generator.manual_seed(seed)
        # What can't be drawn by sample is at least drawn anew on every rank.
        own = seed + self.group.rank
        torch.default_generator.manual_seed(own)
        if self._moves:
            torch.get_device_module(self.device).manual_seed(own)

    def key(self, generator: torch.Generator, batch: Batch) -> None:
        """Let the next forward's dropout belong to the samples of ``batch``."""
        if self._by_sample:
            self.draws.begin(generator.initial_seed(), batch["index"])

    def start_trackers(self, resumed_step: int) -> None:
        """Start the trackers that the recipe names; TensorBoard's files go into the run's folder."""
        if self._config.trackers:
            # Steps after the checkpoint were not kept; without purging, TensorBoard would draw them twice.
            options = {"tensorboard": {"purge_step": resumed_step + 1} if resumed_step else {}}
            self.accelerator.init_trackers("tensorboard", init_kwargs=options)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send values to the trackers."""
        if self._config.trackers:
            self.accelerator.log(dict(values), step=step)


def check_here(config: TrainConfig, context: Context) -> torch.device:
    """Return the device to train on, after checking that this machine has what a recipe asks for.

    Raises:
        CapabilityError: if the device or the precision isn't available here.
        DependencyMissing: if a tracker's extra isn't installed.
    """
    for tracker in set(config.trackers) - {"tensorboard"}:
        component.require(tracker, needed_by=f"train.trackers: '{tracker}'")
    device = _choose_device(context.device if context.device != "auto" else config.device)
    if config.precision == "fp16" and device.type == "cpu":
        raise CapabilityError(
            field="train.precision",
            problem="fp16 with loss scaling needs a GPU",
            value="fp16",
            allowed="fp32, bf16 on a CPU",
        )
    return device


@contextmanager
def engine(
    config: TrainConfig,
    context: Context,
    folder: Path,
    scaling: ScalingConfig | None = None,
    roles: Sequence[str] = ("model",),
) -> Iterator[Engine]:
    """Yield the engine of this process and leave no state of Accelerate behind.

    Args:
        config: the recipe's section.
        context: where this process stands; with several, torch's process group is there already.
        folder: of the run, for TensorBoard's files.
        scaling: the recipe's section; with one, dropout is drawn by sample.
        roles: that are trained.

    Raises:
        CapabilityError: if the device or the precision isn't available here.
        DependencyMissing: if a tracker's extra isn't installed.
        TrainingError: if Accelerate set up something else than was asked.
    """
    device = check_here(config, context)
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    drawn = torch.get_rng_state()
    with kept_variables(), freed_is_kept() if device.type == "cpu" else nullcontext():
        try:
            if config.threads is not None:
                torch.set_num_threads(config.threads)
            if config.deterministic:
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(config.deterministic)
            if device.type == "cuda" and device.index is not None:
                torch.cuda.set_device(device)
            _reset_accelerate()
            accelerator = _accelerator(config, device, folder, scaling or ScalingConfig(), roles)
            _prove(accelerator, device, context, (scaling or ScalingConfig()).strategy)
            try:
                group = Group(context.rank, context.world_size, device)
                yield Engine(accelerator, config, group, scaling)
            finally:
                accelerator.end_training()
        finally:
            _reset_accelerate()
            torch.use_deterministic_algorithms(deterministic)
            torch.set_num_threads(threads)
            torch.set_rng_state(drawn)


def _accelerator(
    config: TrainConfig, device: torch.device, folder: Path, scaling: ScalingConfig, roles: Sequence[str]
) -> Accelerator:
    trackers = list(config.trackers) or None
    if scaling.strategy.startswith("zero"):
        from fmdist.training.strategies.zero import plugin

        plugins = {role: plugin(scaling, config.clip_norm, device.type) for role in roles}
        # Not told that it is a CPU: then it would train plain DDP. Nor the precision: weights stay float32.
        return Accelerator(
            deepspeed_plugin=plugins,
            log_with=trackers,
            project_dir=folder,
            # Of the group that is there already; without it every process would take itself for alone.
            kwargs_handlers=[InitProcessGroupKwargs(backend="gloo" if device.type == "cpu" else "nccl")],
        )
    hooks = []
    if scaling.gradient_compression is not None:
        hook = DDPCommunicationHookType[scaling.gradient_compression.upper()]
        # By default it would compress nothing for 1,000 steps.
        state = {"start_powerSGD_iter": 10} if scaling.gradient_compression == "power_sgd" else {}
        hooks.append(DistributedDataParallelKwargs(comm_hook=hook, comm_state_option=state))
    precision = "no" if config.precision == "fp32" or scaling.strategy != "ddp" else config.precision
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=precision,
        log_with=trackers,
        project_dir=folder,
        kwargs_handlers=hooks,
    )


def _choose_device(wanted: str) -> torch.device:
    best = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if wanted == "auto":
        return best or torch.device("cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise CapabilityError(
            field="train.device",
            problem="not a torch device",
            value=wanted,
            allowed="auto, cpu, cuda, cuda:1, ...",
        ) from None
    if device.type != "cpu" and (best is None or best.type != device.type):
        raise CapabilityError(
            field="train.device",
            problem="no such device on this machine",
            value=wanted,
            allowed="auto, cpu" + (f", {best.type}" if best else ""),
        )
    return device


def _prove(accelerator: Accelerator, device: torch.device, context: Context, strategy: str) -> None:
    """Refuse anything but what was asked: Accelerate itself falls back without a word."""
    got = (accelerator.num_processes, accelerator.device.type)
    asked = (context.world_size, device.type)
    kind = accelerator.distributed_type
    if strategy.startswith("zero"):
        right = kind == DistributedType.DEEPSPEED
    else:
        # One process with a process group, as Ray starts it, is a distributed one too.
        right = kind != DistributedType.DEEPSPEED and (kind != DistributedType.NO or context.world_size == 1)
    if got != asked or not right:
        raise TrainingError(
            problem=f"asked for {strategy} with {asked[0]} process(es) on {asked[1]}, but Accelerate set up "
            f"{kind} with {got[0]} on {got[1]}",
            fix="unset the ACCELERATE_* and torchrun variables of the environment",
        )


def _reset_accelerate() -> None:
    # Accelerate keeps process-wide singletons; without this a second run with another precision is refused.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
