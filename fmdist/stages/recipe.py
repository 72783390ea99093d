"""The recipe: its sections, each owned by a stage, and how it is loaded.

Nothing heavy is imported until a recipe is read: an artifact answers without one.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

if TYPE_CHECKING:
    from fmdist.compression.config import CompressConfig
    from fmdist.data.base import DataConfig
    from fmdist.models.base import ModelConfig
    from fmdist.recipe.schema import SectionSpec
    from fmdist.tasks.base import TaskConfig
    from fmdist.training.config import TrainConfig
    from fmdist.training.distill_config import DistillConfig
    from fmdist.training.scaling import ScalingConfig
    from fmdist.training.transfer_config import TransferConfig


@functools.cache
def sections() -> dict[str, SectionSpec]:
    """Return the recipe's top-level keys, each owned by its stage; an artifact answers without them."""
    from pydantic import Field

    from fmdist.compression.config import CompressConfig
    from fmdist.recipe.schema import Plugin, SectionSpec
    from fmdist.training.config import TrainConfig
    from fmdist.training.distill_config import DistillConfig
    from fmdist.training.scaling import ScalingConfig
    from fmdist.training.transfer_config import TransferConfig

    return {
        "name": SectionSpec(
            Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")],
            summary="Names the run's folder, runs/<name>.",
        ),
        "seed": SectionSpec(
            Annotated[int, Field(ge=0, lt=2**63)],
            default=0,
            summary="Keys the split, the weights and every draw.",
        ),
        "data": SectionSpec(Plugin("data"), summary="What to learn from."),
        "model": SectionSpec(Plugin("models"), summary="The architecture; its sizes follow from the data."),
        "task": SectionSpec(Plugin("tasks"), summary="What is learned."),
        "train": SectionSpec(TrainConfig, default={}, summary="How it is trained."),
        "scaling": SectionSpec(
            ScalingConfig, default=None, summary="On how many processes, and where, it is trained."
        ),
        "transfer": SectionSpec(
            TransferConfig,
            default=None,
            summary="Trained weights to start from; what of them is trained.",
        ),
        "distill": SectionSpec(
            DistillConfig, default=None, summary="A trained model to learn from beside the labels."
        ),
        "compress": SectionSpec(
            CompressConfig, default=None, summary="How the trained model is made smaller."
        ),
    }


@dataclass(frozen=True)
class Recipe:
    """A validated recipe."""

    name: str
    seed: int
    data: DataConfig
    model: ModelConfig
    task: TaskConfig
    train: TrainConfig
    scaling: ScalingConfig | None
    transfer: TransferConfig | None
    distill: DistillConfig | None
    compress: CompressConfig | None

    @property
    def plain(self) -> dict[str, Any]:
        """The resolved recipe as plain JSON values."""
        from fmdist.recipe.resolved import to_plain

        return to_plain({field.name: getattr(self, field.name) for field in fields(self)})


Source = Path | str | Mapping[str, Any] | Recipe
"""What every verb takes for a recipe: a file, plain values, or one that is loaded."""


def load_recipe(source: Source, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a YAML file or a mapping, with overrides such as ``train.lr=1e-3`` applied.

    Raises:
        UsageError: if there is no such file.
        RecipeError: every mistake of the recipe at once.
        CapabilityError: if its parts don't fit together.
        DependencyMissing: if only extras are missing.
    """
    from fmdist.recipe import overrides as override
    from fmdist.recipe import parsing, reader
    from fmdist.stages import checks

    if isinstance(source, Path | str):
        recipe = Recipe(**parsing.load(Path(source), overrides, sections()))
    else:
        plain = source.plain if isinstance(source, Recipe) else source
        raw = override.apply(reader.Raw(dict(plain), {}), overrides)
        recipe = Recipe(**parsing.parse(raw.values, sections(), raw.lines))
    checks.check(recipe)
    return recipe


def only(*names: str) -> dict[str, SectionSpec]:
    """Return some of the sections, for what needs only a part of a recipe."""
    return {name: sections()[name] for name in names}
