"""What a recipe's parts can't do together, refused when it is read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fmdist import component
from fmdist.errors import CapabilityError

if TYPE_CHECKING:
    from fmdist.compression.config import CompressConfig
    from fmdist.models.base import ModelConfig
    from fmdist.stages.recipe import Recipe
    from fmdist.tasks.base import TaskConfig
    from fmdist.training.scaling import ScalingConfig

ELEMENTWISE = ("Adadelta", "Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD")
"""Optimizers that update each number by itself alone, so that a shard of the weights is enough for them."""


def check(recipe: Recipe) -> None:
    """Check what can be known before anything is loaded.

    Raises:
        CapabilityError: if the recipe's parts don't fit together.
        DependencyMissing: if one needs an extra that isn't installed.
    """
    check_form(recipe.model, recipe.task)
    _check_learning(recipe)
    if recipe.scaling is not None:
        _check_scaling(recipe, recipe.scaling)
    if recipe.compress is not None:
        check_compression(recipe.model, recipe.compress)


def check_form(model: ModelConfig, task: TaskConfig) -> None:
    """Raise `CapabilityError` if the task can't train this sort of model."""
    if model.form == task.needs:
        return
    kinds = component.kinds("models").values()
    raise CapabilityError(
        field="model.kind",
        problem=f"task '{task.kind()}' can't train this kind of model",
        value=model.kind(),
        allowed=", ".join(kind.name for kind in kinds if kind.facts.get("form", "outputs") == task.needs),
    )


def _check_learning(recipe: Recipe) -> None:
    """Raise if ``transfer`` or ``distill`` asks for what is known not to work, or an extra is missing."""
    if recipe.transfer is not None and recipe.transfer.lora is not None:
        component.require("text", needed_by="transfer.lora")
    if recipe.distill is None:
        return
    if recipe.task.needs not in ("outputs", "language", "pair"):
        raise CapabilityError(
            field="distill",
            problem=f"task '{recipe.task.kind()}' has no outputs for each sample that a teacher could show",
            fix="leave distill out; classification, regression and the tasks on tokens can be distilled",
        )
    blends = [name for name in ("mixup", "cutmix") if getattr(recipe.task, name, 0)]
    if recipe.distill.noisy_student and blends:
        raise CapabilityError(
            field="distill.noisy_student",
            problem=f"the teacher sees each sample as it is, and task.{blends[0]} blends samples",
            fix=f"set noisy_student: false, so that both see the blends, or task.{blends[0]}: 0",
        )


def check_compression(model: ModelConfig, config: CompressConfig) -> None:
    """Check what is known of a model family before anything is trained or exported.

    Raises:
        CapabilityError: if it can't be exported to a runtime, or not be quantized, that the section asks for.
    """
    if model.onnx_route is None and "onnxruntime" in (config.runtimes or ()):
        raise CapabilityError(
            field="compress.runtimes",
            problem=f"model kind '{model.kind()}' can't be exported to ONNX",
            value="onnxruntime",
            allowed="openvino",
        )
    if model.not_quantizable is not None and any(item.kind() == "quantize" for item in config.passes):
        raise CapabilityError(
            field="compress.passes",
            problem=f"model kind '{model.kind()}' can't be quantized: {model.not_quantizable}",
            value="quantize",
            fix="leave the pass out",
        )


def _check_scaling(recipe: Recipe, scaling: ScalingConfig) -> None:
    """Raise if the strategy can't train what the recipe asks for, or an extra is missing."""
    if scaling.strategy == "ddp":
        return
    if scaling.strategy.startswith("zero"):
        component.require("deepspeed", needed_by=f"scaling.strategy: '{scaling.strategy}'")
    for applies, field, value, allowed in _limits(recipe, scaling):
        if applies:
            problem = f"strategy '{scaling.strategy}' can't do this"
            raise CapabilityError(field=field, problem=problem, value=value, allowed=allowed)
    if recipe.task.not_sharded is not None:
        raise CapabilityError(
            field="scaling.strategy",
            problem=f"it can't train this: {recipe.task.not_sharded}",
            value=scaling.strategy,
            allowed="ddp",
        )


def _limits(recipe: Recipe, scaling: ScalingConfig) -> Iterator[tuple[bool, str, object, str]]:
    """Yield what shards don't allow: whether it is asked for, the field, its value, what is allowed."""
    config, strategy = recipe.train, scaling.strategy
    zero = strategy.startswith("zero")
    fixed = "a fixed number; a run may be resumed with another, and strategy ddp takes a range"
    yield zero and scaling.elastic, "scaling.workers", scaling.workers, fixed
    yield config.precision == "fp16", "train.precision", "fp16", "fp32, bf16"
    yield config.compile, "train.compile", True, "false"
    yield zero and config.non_finite == "skip", "train.non_finite", "skip", "stop"
    averaged = strategy in ("zero3", "fsdp") and config.ema is not None
    yield averaged, "train.ema", "set", "null; strategies ddp, zero1 and zero2 average weights"
    recomputed = strategy == "zero3" and scaling.activation_checkpointing
    yield recomputed, "scaling.activation_checkpointing", True, "false; fsdp, zero1 and zero2 can"
    chosen = {f"train.phases.{role}.optimizer": phase.optimizer for role, phase in config.phases.items()}
    for field, name in {"train.optimizer": config.optimizer, **chosen}.items():
        yield name not in (None, *ELEMENTWISE), field, name, ", ".join(ELEMENTWISE)
