"""Where a task and its modules come from: a recipe, and finished runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmdist.errors import CheckpointError

if TYPE_CHECKING:
    from torch import nn

    from fmdist.contracts import DataSpec, Task
    from fmdist.models.base import ModelConfig
    from fmdist.stages.recipe import Recipe
    from fmdist.training.transfer import Transfer


@dataclass(frozen=True)
class Modules:
    """A `fmdist.contracts.ModelBuilder`."""

    config: ModelConfig | None
    """None where no new model is called: an artifact is scored without any model's code."""

    def build(self, spec: DataSpec, outputs: int) -> nn.Module:
        """Return a new module of the recipe's model kind."""
        from torch import nn

        return nn.Identity() if self.config is None else self.config.build(spec, outputs)

    def trained(self, run: Path) -> nn.Module:
        """Return what a finished run serves, frozen and in evaluation mode.

        Raises:
            CheckpointError: if ``run`` isn't a run, or has no whole checkpoint that was evaluated.
        """
        task = open_task(run)
        return task.served(task.roles()).eval().requires_grad_(False)


def new_task(recipe: Recipe, spec: DataSpec) -> tuple[Task, Transfer | None]:
    """Return a recipe's task in its initial state, and what is to be done about its weights."""
    from fmdist.training.run import build_task
    from fmdist.training.transfer import Transfer

    build = partial(build_task, recipe.task, recipe.seed, model=Modules(recipe.model))
    task = build(spec)
    if recipe.transfer is None:
        return task, None
    return task, Transfer(recipe.transfer, task, build, recipe.seed)


def checkpointed_task(recipe: Recipe, spec: DataSpec) -> Task:
    """Return a recipe's task with the modules that its checkpoints fit, not initialized from elsewhere."""
    task, transfer = new_task(recipe, spec)
    if transfer is not None:
        transfer.adapt()
    return task


def open_module(artifact: Path | str, *, into: nn.Module | None = None) -> nn.Module:
    """Return the torch module of an artifact, as the passes on it have left it, to be trained on.

    Its float weights: what quantization did afterwards is in the runtimes' files alone. Where a pass made
    zeros, `fmdist.compression.finetune.keeping_zeros` keeps them.

    Args:
        artifact: the artifact's folder.
        into: a module as the original was built, for an artifact of a module that no recipe builds; it is
            changed.

    Raises:
        CheckpointError: if ``artifact`` isn't one, a file of it was changed, or it doesn't say how to build
            the module.
    """
    from safetensors.torch import load_file

    from fmdist import storage
    from fmdist.compression import reshape
    from fmdist.contracts import DataSpec
    from fmdist.stages.recipe import load_recipe

    folder = Path(artifact)
    manifest = storage.verify(folder)
    _check_rebuilds(folder, manifest, into)
    reduced = (folder / "reduced.safetensors").exists()
    name, weights = ("reduced.", "reduced") if reduced else ("", "model")
    architecture = storage.read_json(folder / f"{name}architecture.json")
    module = into
    if module is None:
        task = checkpointed_task(load_recipe(manifest["recipe"]), DataSpec.from_json(architecture["spec"]))
        module = task.served(task.roles())
    reshape.apply(module, architecture["changes"])
    try:
        module.load_state_dict(load_file(folder / f"{weights}.safetensors"))
    except RuntimeError as error:
        raise CheckpointError(
            field="into",
            problem=f"the artifact's weights don't fit it ({' '.join(str(error).split())[:200]})",
        ) from None
    return module.eval()


def _check_rebuilds(folder: Path, manifest: Mapping[str, Any], into: nn.Module | None) -> None:
    if not (folder / "model.safetensors").exists():
        raise CheckpointError(
            field=str(folder),
            problem="it was made from a graph, so there is no torch module in it",
            value=manifest["source"],
            fix="compress the .safetensors of the trained module to have one",
        )
    if into is None and manifest["recipe"].get("model") is None:
        raise CheckpointError(
            field=str(folder),
            problem="it was made from a module that no recipe builds",
            value=manifest["source"],
            fix="give one that is built in the same way: open_module(artifact, into=Net())",
        )


def open_task(run: Path) -> Task:
    """Return a run's task with the weights of its best checkpoint; its data isn't needed.

    Raises:
        CheckpointError: if ``run`` isn't a run, or has no whole checkpoint that was evaluated.
    """
    from fmdist.contracts import DataSpec
    from fmdist.stages.recipe import load_recipe
    from fmdist.training import run as runs

    recipe = load_recipe(runs.recipe_path(run))
    task = checkpointed_task(recipe, DataSpec.from_json(runs.read_signature(run)["spec"]))
    runs.load_best(run, task)
    return task
