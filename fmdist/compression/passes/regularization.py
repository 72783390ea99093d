"""Which weights may go, learned with them: a mask per weight, and a loss that asks for a share of zeros.

Source: NNCF's regularization-based pruning, after Louizos et al. 2017 (arXiv:1712.01312), who train gates on
weights. NNCF leaves recurrent layers out, and whatever else its trace doesn't show.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from fmdist.compression.passes import layers as found_layers
from fmdist.compression.passes.nncf_calls import quiet_nncf
from fmdist.contracts import Batch, LossOut, Phase, Roles, Task
from fmdist.deployment.runtime import load_openvino
from fmdist.errors import CapabilityError, CompressionError
from fmdist.training.wrapped import Wrapped

MASK_LR = 3e-2
"""Learning rate of the masks: with that of the weights the share is not reached in any reasonable time."""

_TOLERANCE = 0.05
"""By which the learned share may miss what was asked for; what is missing, or too much, goes by the masks."""

_FIELD = "compress.passes.prune_weights.method"

log = logging.getLogger(__name__)

Train = Callable[[Task], None]
"""Trains a task, with AdamW, and leaves it with its last weights."""


def learn(
    task: Task,
    example: tuple[Tensor, ...],
    matrices: Mapping[tuple[str, str], Tensor],
    share: float,
    lr: float,
    train: Train,
) -> dict[tuple[str, str], Tensor]:
    """Return for each weight that NNCF covers whether it stays, of its shape; ``share`` of all do not.

    Args:
        task: trains the module that it serves; its weights are trained on.
        example: inputs of the module.
        matrices: (layer, its tensor) -> the weights that may be pruned.
        share: of the covered weights that goes.
        lr: learning rate of the weights in ``train``.
        train: does the training.

    Raises:
        CapabilityError: if the task trains something else than it serves, or NNCF can't trace the module.
        CompressionError: if training ended far from the share.
    """
    roles, phases = task.roles(), task.phases()
    if len(phases) != 1 or task.served(roles) is not roles[phases[0].role]:
        raise CapabilityError(
            field=_FIELD, problem="the task trains another module than the one it serves", fix="use magnitude"
        )
    whole = _Called(roles[phases[0].role])
    masks = _add_masks(whole, example, matrices)
    if not masks:
        return {}
    for mask in masks.values():
        parametrize.register_parametrization(mask, "mask", _Scaled(MASK_LR / lr))
    train(Regularized(task, whole, share))
    scores = {key: mask.mask.detach().cpu() for key, mask in masks.items()}
    together = torch.cat([value.flatten() for value in scores.values()])
    reached = float((together <= 0).float().mean())
    log.info("regularization made %.1f%% of the weights zero", 100 * reached)
    if abs(reached - share) > _TOLERANCE:
        raise CompressionError(
            field=_FIELD,
            problem="training with the regularization ended far from the share of zeros",
            value=round(reached, 4),
            allowed=f"{share} +- {_TOLERANCE}",
            fix="give it more epochs (regularization_epochs), or use magnitude",
        )
    limit = found_layers.smallest(together, share)
    return {key: value > limit for key, value in scores.items()}


class Regularized(Wrapped):
    """A task whose module has masks, and whose loss asks for a share of zeros.

    Args:
        task: has one phase, whose role it serves.
        whole: is trained in place of that role's module.
        share: of the masks that are to be zero.
    """

    def __init__(self, task: Task, whole: nn.Module, share: float) -> None:
        from nncf.torch.function_hook.pruning.rb.losses import RBLoss

        super().__init__(task)
        (self._phase,) = task.phases()
        self._whole = whole
        self._asked = RBLoss(whole, share)

    def roles(self) -> dict[str, nn.Module]:
        """Return the task's roles, with the masked module among them."""
        return {**self._task.roles(), self._phase.role: self._whole}

    def served(self, roles: Roles) -> nn.Module:
        """Return the masked module."""
        return roles[self._phase.role]

    def phases(self) -> tuple[Phase, ...]:
        """Return the task's phase with the regularization in its loss."""
        phase = self._phase

        def loss(roles: Roles, batch: Batch, generator: torch.Generator) -> LossOut:
            found = phase.loss(roles, batch, generator)
            asked = self._asked().to(found.loss_sum) * found.count
            return LossOut(found.loss_sum + asked, found.count, found.logs)

        return (Phase(phase.role, loss, phase.every, phase.after),)


class _Called(nn.Module):
    """Calls a module: NNCF can't trace a bare `nn.Sequential`, and leaves its hooks in this one."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the module's outputs."""
        outputs: Tensor = self.module(*inputs)
        return outputs


class _Scaled(nn.Module):
    """A mask as a multiple of what is trained, which Adam moves by its rate however small the gradient is."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, trained: Tensor) -> Tensor:
        """Return the mask."""
        return self.scale * trained

    def right_inverse(self, mask: Tensor) -> Tensor:
        """Return what is trained."""
        return mask / self.scale


def _add_masks(
    whole: nn.Module, example: tuple[Tensor, ...], matrices: Mapping[tuple[str, str], Tensor]
) -> dict[tuple[str, str], Any]:
    """Return NNCF's mask modules by the weights that they are for."""
    load_openvino()  # for what it does about the telemetry that NNCF would start
    import nncf
    from nncf.torch.function_hook.pruning.rb.algo import get_pruned_modules
    from nncf.torch.function_hook.wrapper import get_hook_storage

    keys = {value.data_ptr(): key for key, value in matrices.items()}
    others = [name for name, value in whole.named_parameters() if value.data_ptr() not in keys]
    with quiet_nncf():
        try:
            masked = nncf.prune(
                whole,
                mode=nncf.PruneMode.UNSTRUCTURED_REGULARIZATION_BASED,
                ignored_scope=nncf.IgnoredScope(names=others, validate=False),
                examples_inputs=example,
            )
        # Whatever a model does in its own code, the trace meets it.
        except Exception as error:
            said = " ".join(f"{type(error).__name__} {error}".split())[:200]
            raise CapabilityError(
                field=_FIELD, problem=f"NNCF can't trace the model ({said})", fix="use magnitude"
            ) from error
    # NNCF adds them in the order of a set, another in each process; a checkpoint's optimizer goes by place.
    hooks = get_hook_storage(masked).post_hooks
    ordered = sorted(hooks.items())
    hooks.clear()
    hooks.update(dict(ordered))
    found = get_pruned_modules(masked)
    return {keys[whole.get_parameter(name).data_ptr()]: mask for name, mask in found.items()}
