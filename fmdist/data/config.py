"""The recipe sections that every data kind shares."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fmdist.recipe.schema import Section

Fraction = Annotated[float, Field(gt=0, lt=1)]
Strength = Annotated[float, Field(ge=0, le=10)]
Location = Annotated[Path, Field(strict=False)]
"""A path, which a recipe writes as a string; relative to the working directory."""


class SplitConfig(Section):
    """How rows are divided into training, validation and test; published splits are kept as they are."""

    train: Fraction = 0.7
    """Share of the rows to train on, in (0, 1); the three shares sum to 1."""
    validation: Fraction = 0.15
    """Share of the rows that choose the best checkpoint, in (0, 1)."""
    test: Fraction = 0.15
    """Share of the rows for the final score, in (0, 1)."""
    stratify: bool = True
    """Give every split the classes in the same proportions; only for targets that are classes."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    """Seed of the split; null takes the recipe's seed."""

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.train + self.validation + self.test
        if not math.isclose(total, 1, abs_tol=1e-6):
            message = f"train + validation + test must be 1, not {total:g}"
            raise ValueError(message)
        return self


class CleanConfig(Section):
    """What is removed before anything is learned; every removal is counted in the run's record."""

    duplicates: Literal["drop", "keep"] = "drop"
    """Rows of equal content: keep the first (before the split, so that no copy is on both sides), or all."""
    non_finite: Literal["drop", "fail"] = "drop"
    """Rows with a missing, nan or infinite number: quarantine them, or stop."""
    outliers: Literal["none", "iqr", "zscore"] = "none"
    """Tables: which training rows to remove by their numeric columns; never from validation or test."""
    outlier_threshold: float = Field(default=3.0, gt=0)
    """How far out: interquartile ranges beyond the quartiles, or standard deviations from the mean."""
    max_bad_share: float = Field(default=0.01, ge=0, lt=1)
    """Stop if more than this share of the records, in [0, 1), is unreadable or not finite."""


class ColorJitterConfig(Section):
    """Random changes of colour; a strength s draws a factor from [max(0, 1 - s), 1 + s]."""

    brightness: Strength = 0.0
    """Strength, in [0, 10]."""
    contrast: Strength = 0.0
    """Strength, in [0, 10]."""
    saturation: Strength = 0.0
    """Strength, in [0, 10]; colour images only."""
    hue: float = Field(default=0.0, ge=0, le=0.5)
    """Largest shift as a share of the colour circle, in [0, 0.5]; colour images only."""


class ScaleConfig(Section):
    """The range of a random zoom."""

    min: float = Field(gt=0, le=10)
    """Smallest factor, in (0, 10]."""
    max: float = Field(gt=0, le=10)
    """Largest factor, in (0, 10]."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            message = f"min ({self.min:g}) must not be larger than max ({self.max:g})"
            raise ValueError(message)
        return self


class AugmentConfig(Section):
    """Random changes of training images, keyed by (seed, epoch, sample); needs the extra ``vision``."""

    crop_padding: int = Field(default=0, ge=0, le=512)
    """Pad by this many black pixels on each side, then crop at random to the old size."""
    horizontal_flip: float = Field(default=0.0, ge=0, le=1)
    """Probability, in [0, 1]."""
    vertical_flip: float = Field(default=0.0, ge=0, le=1)
    """Probability, in [0, 1]."""
    rotate: float = Field(default=0.0, ge=0, le=180)
    """Largest angle in degrees, to either side, in [0, 180]."""
    scale: ScaleConfig | None = None
    """Range of the zoom; null leaves the size."""
    color: ColorJitterConfig | None = None
    """Colour jitter; null leaves the colours."""
