"""The base of every model kind's ``Config``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fmdist.contracts import DataSpec, ExportSpec, InputSpec, Roles
from fmdist.errors import CapabilityError
from fmdist.recipe.schema import ComponentConfig

if TYPE_CHECKING:
    from torch import Tensor, nn


class ModelConfig(ComponentConfig):
    """A model family's settings; sizes that follow from the data are not among them."""

    def build(self, spec: DataSpec, outputs: int) -> nn.Module:
        """Return a new module that maps the inputs of ``spec`` to (B, outputs)."""
        raise NotImplementedError

    def exports(self, roles: Roles, spec: DataSpec) -> dict[str, ExportSpec]:
        """Return how to export the trained modules: by default role ``model``, with a dynamic batch."""
        names = tuple(item.name for item in spec.inputs)

        def example_inputs(batch: int) -> tuple[Tensor, ...]:
            generator = torch.Generator().manual_seed(batch)
            return tuple(torch.randn(batch, *item.shape, generator=generator) for item in spec.inputs)

        return {
            "model": ExportSpec(
                module=roles["model"],
                example_inputs=example_inputs,
                input_names=names,
                dynamic_axes={name: {0: "batch"} for name in (*names, "output")},
            )
        }


def image_input(spec: DataSpec, kind: str, smallest: int) -> tuple[int, int, int]:
    """Return (C, H, W) of the only input.

    Raises:
        CapabilityError: if the data isn't images, or they are smaller than ``smallest`` pixels a side.
    """
    shape = single_input(spec, kind).shape
    if len(shape) != 3:
        raise CapabilityError(
            field="model.kind",
            problem=f"'{kind}' reads images (C, H, W) and the data gives inputs of another shape",
            value=shape,
            fix="use 'mlp' for tables",
        )
    channels, height, width = shape
    if min(height, width) < smallest:
        raise CapabilityError(
            field="model.kind",
            problem=f"'{kind}' as configured needs images of at least {smallest} x {smallest}",
            value=f"{height} x {width}",
            fix="use larger images or fewer stages",
        )
    return channels, height, width


def single_input(spec: DataSpec, kind: str) -> InputSpec:
    """Return the only input.

    Raises:
        CapabilityError: if the data has several inputs.
    """
    if len(spec.inputs) != 1:
        raise CapabilityError(
            field="model.kind",
            problem=f"'{kind}' takes one input and the data has several",
            value=[item.name for item in spec.inputs],
        )
    return spec.inputs[0]
