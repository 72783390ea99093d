"""The recipe's ``distill`` section."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fmdist.data.config import Location
from fmdist.recipe.schema import Section


class DistillConfig(Section):
    """Learn from a teacher's outputs beside the labels (Hinton et al. 2015, arXiv:1503.02531)."""

    teacher: Location
    """The run of a model for the same data and target. Only training needs it."""
    temperature: float = Field(default=4.0, gt=0)
    """Divides the logits of both in the soft loss of classes, labels and tokens; that loss counts temperature
    squared times, so that its gradients keep their size. Numbers have none."""
    soft_weight: float = Field(default=0.5, gt=0, le=1)
    """Share of the teacher's part in the loss; the rest is the task's own loss on the labels."""
    targets: Literal["soft", "hard"] = "soft"
    """What is learned from the teacher: its distribution, or the answer that it gives, as a pseudo label."""
    noisy_student: bool = False
    """The teacher sees each sample as it is, the student with `data.augment` and dropout (Xie et al. 2020,
    arXiv:1911.04252). Otherwise both see the same batch."""
