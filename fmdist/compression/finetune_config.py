"""How a pass on the torch model trains on."""

from __future__ import annotations

from pydantic import Field

from fmdist.recipe.schema import Section


class SoftTargets(Section):
    """Learn from the uncompressed model beside the labels (Hinton et al. 2015, arXiv:1503.02531)."""

    temperature: float = Field(default=4.0, gt=0)
    """Divides the logits of both; numbers have none."""
    soft_weight: float = Field(default=0.5, gt=0, le=1)
    """Share of the uncompressed model's part in the loss."""


class FinetuneConfig(Section):
    """Training after a pass, by the recipe's `train` section but for what is said here."""

    epochs: int = Field(default=5, ge=1)
    """Passes over the training split, each followed by an evaluation; the best is kept."""
    lr: float | None = Field(default=None, gt=0)
    """Learning rate; null is the recipe's."""
    distill: SoftTargets | None = None
    """The uncompressed model is the teacher; `{}` takes the defaults."""
