"""Optimizers by their torch.optim name, and learning-rate schedules as functions of the step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from fmdist.errors import did_you_mean

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

    from fmdist.training.config import PhaseConfig, TrainConfig


REFUSED = {
    "LBFGS": "its step evaluates the loss more than once",
    "Muon": "it takes two-dimensional parameters only, and every model has others",
    "SparseAdam": "it takes sparse gradients only",
}
"""Classes of torch.optim that can't train here, with the reason."""

_LR_SCALE = "lr_scale"
_UNDECAYED = "undecayed"


def optimizer_class(name: str) -> type[Optimizer]:
    """Return the class of torch.optim called ``name``.

    Raises:
        ValueError: if there is none, or it is one of `REFUSED`.
    """
    import torch

    if name in REFUSED:
        msg = f"{name} is not supported: {REFUSED[name]}"
        raise ValueError(msg)
    known = [
        key
        for key, value in vars(torch.optim).items()
        if inspect.isclass(value)
        and issubclass(value, torch.optim.Optimizer)
        and key not in ("Optimizer", *REFUSED)
    ]
    if name not in known:
        msg = f"no such optimizer in torch.optim; allowed: {', '.join(sorted(known))}"
        close = did_you_mean(name, known)
        raise ValueError(f"{msg}; {close}" if close else msg)
    found: type[Optimizer] = getattr(torch.optim, name)
    return found


def check_options(name: str, options: Mapping[str, Any], weight_decay: float) -> None:
    """Check options against the optimizer's signature, and their values by building one.

    Raises:
        ValueError: naming the option that the optimizer doesn't take, and what it does take; or saying why it
            refuses a value.
    """
    import torch

    allowed = set(inspect.signature(optimizer_class(name)).parameters) - {"params", "lr", "weight_decay"}
    for option in options:
        if option in ("lr", "weight_decay"):
            msg = f"'{option}' is a key of its own: train.{option}"
            raise ValueError(msg)
        if option not in allowed:
            msg = f"{name} takes no option '{option}'; allowed: {', '.join(sorted(allowed))}"
            close = did_you_mean(option, allowed)
            raise ValueError(f"{msg}; {close}" if close else msg)
    if weight_decay and "weight_decay" not in inspect.signature(optimizer_class(name)).parameters:
        msg = f"{name} has no weight decay; set train.weight_decay to 0"
        raise ValueError(msg)
    if not options:
        return  # the first optimizer in a process has torch import its compiler: a second
    build: Any = optimizer_class(name)
    try:
        build([torch.zeros(1)], **_with_tuples(options))
    except (TypeError, ValueError, RuntimeError) as error:
        msg = f"{name} refuses its options ({error})"
        raise ValueError(msg) from None


def build_optimizer(module: nn.Module, config: TrainConfig, phase: PhaseConfig | None) -> Optimizer:
    """Return an optimizer over the parameters of ``module`` that require gradients.

    Weight decay leaves out parameters of fewer than two dimensions (biases, normalization) and those of
    `spare_decay`. Parameters have groups of their own where `scale_lr` gave them a learning rate of their
    own.
    """
    name = (phase and phase.optimizer) or config.optimizer
    options = config.options if phase is None or phase.options is None else phase.options
    lr = (phase and phase.lr) or config.lr
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    options = _with_tuples(options)
    groups: list[dict[str, Any]] = []
    # The full rate first: what is recorded as the learning rate is the first group's.
    for scale in sorted(set(map(_lr_scale, parameters)), reverse=True):
        layer = [parameter for parameter in parameters if _lr_scale(parameter) == scale]
        if not config.weight_decay:
            groups.append({"params": layer, "lr": lr * scale, **_undecayed(name)})
            continue
        decays = {"weight_decay": config.weight_decay, "lr": lr * scale}
        groups.append({"params": [p for p in layer if _decays(p)], **decays})
        groups.append({"params": [p for p in layer if not _decays(p)], **decays, "weight_decay": 0.0})
    build: Any = optimizer_class(name)
    return build([group for group in groups if group["params"]], lr=lr, **options)  # type: ignore[no-any-return]


def scale_lr(parameter: nn.Parameter, scale: float) -> None:
    """Let optimizers train a parameter at ``scale`` times the learning rate, in (0, 1]."""
    setattr(parameter, _LR_SCALE, scale)


def spare_decay(parameter: nn.Parameter) -> None:
    """Let optimizers train a parameter without weight decay, whatever its dimensions."""
    setattr(parameter, _UNDECAYED, True)


def _decays(parameter: nn.Parameter) -> bool:
    return parameter.ndim >= 2 and not hasattr(parameter, _UNDECAYED)


def _lr_scale(parameter: nn.Parameter) -> float:
    return float(getattr(parameter, _LR_SCALE, 1.0))


def _with_tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with pairs such as ``betas`` as tuples, which YAML doesn't have."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}


def _undecayed(name: str) -> dict[str, float]:
    """Say zero out loud: AdamW decays by 0.01 unless told otherwise."""
    takes = inspect.signature(optimizer_class(name)).parameters
    return {"weight_decay": 0.0} if "weight_decay" in takes else {}


def lr_factor(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of optimizer step ``step`` (from 0) over ``train.lr``, in (0, 1].

    A function of the step alone, so that a schedule has no state to save.
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return (step + 1) / warmup
    total = config.epochs * steps_per_epoch
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    floor = config.final_lr_ratio
    if config.schedule == "cosine":
        return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "linear":
        return floor + (1 - floor) * (1 - done)
    if config.schedule == "step":
        return float(config.gamma ** (step // (config.step_epochs * steps_per_epoch)))
    if config.schedule == "exponential":
        return float(config.gamma ** (step // steps_per_epoch))
    return 1.0
