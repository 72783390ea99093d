"""How the sensitivity of layers is measured."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fmdist.recipe.schema import Section

Share = Annotated[float, Field(gt=0, lt=1)]


class SensitivityConfig(Section):
    """What is done to one layer at a time, and on how many samples its effect is measured."""

    samples: int = Field(default=512, ge=1)
    """Validation samples, drawn evenly over the classes."""
    weights: tuple[Share, ...] = Field(default=(0.5, 0.8, 0.95), min_length=1)
    """Shares of a layer's weights, the smallest, that are made zero."""
    channels: tuple[Share, ...] = Field(default=(0.25, 0.5, 0.75), min_length=1)
    """Shares of a layer's output channels, those of the smallest L2 norm, that are made zero."""
    bits: tuple[Literal[4, 8], ...] = Field(default=(8, 4), min_length=1)
    """Widths of the integers to which a layer's weights are rounded, symmetric per output channel."""
