"""The base of every model kind's ``Config``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, ClassVar, Literal

import torch

from fmdist.contracts import DataSpec, ExportSpec, InputSpec
from fmdist.errors import CapabilityError
from fmdist.recipe.schema import ComponentConfig

if TYPE_CHECKING:
    from torch import Tensor, nn


class ModelConfig(ComponentConfig):
    """A model family's settings; sizes that follow from the data are not among them."""

    form: ClassVar[str] = "outputs"
    """What `build` returns, one of `FORMS`; a task needs one of them."""
    onnx_route: ClassVar[Literal["dynamo", "torchscript"] | None] = "dynamo"
    """The exporter that keeps the free axes free; None: the family can't be exported to ONNX."""
    openvino_route: ClassVar[Literal["trace", "exported"]] = "trace"
    """How OpenVINO reads the module: by tracing it, or through `torch.export`."""
    not_quantizable: ClassVar[str | None] = None
    """Why INT8 quantization has nothing to do or fails; None: it works."""
    onnx_float_only: ClassVar[str | None] = None
    """Why it does so in ONNX Runtime alone."""

    fixed: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Patterns of the names of layers whose sizes can't change -> why."""

    def build(self, spec: DataSpec, outputs: int) -> nn.Module:
        """Return a new module for the inputs of ``spec``, of the form that `form` names."""
        raise NotImplementedError

    def export(self, module: nn.Module, inputs: Sequence[InputSpec]) -> ExportSpec:
        """Return how to export what a task serves of a model of this kind, with all free axes free.

        Args:
            module: maps ``inputs``, in order, to one tensor, batch first.
            inputs: of the module.
        """
        names = tuple(item.name for item in inputs)
        axes = {item.name: {0: "batch", **_free(item)} for item in inputs}
        # Logits for every token: the output's time axis is that of the last input.
        time = _free(inputs[-1]) if self.form in ("language", "pair") else {}
        longest = max(item.longest for item in inputs)
        return ExportSpec(
            module=module,
            example_inputs=partial(_examples, tuple(inputs)),
            input_names=names,
            dynamic_axes={**axes, "output": {0: "batch", **time}},
            onnx_route=self.onnx_route,
            openvino_route=self.openvino_route,
            float_only={} if self.onnx_float_only is None else {"onnxruntime": self.onnx_float_only},
            fixed=self.fixed,
            probes=((2, longest), (5, max(longest // 2, min(longest, 4)))),
        )


FORMS = {
    "outputs": "forward(*inputs) -> (B, outputs)",
    "language": "forward(tokens_BT) -> logits (B, T, outputs), causal",
    "pair": "forward(source_BS, prefix_BT) -> logits (B, T, outputs), causal in the prefix",
    "autoencoder": "encode(x) -> z_BZ and decode(z_BZ), with `latent`, the size Z",
    "variational": "encode(x) -> mean_BZ and log_variance_BZ, and decode(z_BZ), with `latent`, the size Z",
    "adversaries": "nn.ModuleDict of generator(z_BZ) -> x and discriminator(x) -> (B, 1), with `latent`",
    "scores": "forward(user_B, item_B, ...) -> (B, 1) and rank(user_B, ...) -> (B, items)",
}
"""Form -> the module that a model kind of this form builds."""


def _free(item: InputSpec) -> dict[int, str]:
    return {axis + 1: f"{item.name}_length" for axis, size in enumerate(item.shape) if size is None}


def _examples(inputs: tuple[InputSpec, ...], batch: int, length: int) -> tuple[Tensor, ...]:
    """Return inputs for a batch size and a length, seeded by both; of every three token rows two are padded.

    Inputs after the first are one shorter each, since an exporter ties axes together that happen to agree.
    """
    generator = torch.Generator().manual_seed(1000 * length + batch)
    values = []
    for position, item in enumerate(inputs):
        extent = max(1, min(length - position, item.longest))
        shape = (batch, *(extent if size is None else size for size in item.shape))
        if item.dtype == "float32":
            values.append(torch.randn(shape, generator=generator))
            continue
        padded = None in item.shape
        ids = torch.randint(min(1, item.size - 1) if padded else 0, item.size, shape, generator=generator)
        if padded:
            kept_B = extent - torch.arange(batch) % 3 * (extent // 4)
            ids *= torch.arange(extent) < kept_B[:, None]
        values.append(ids)
    return tuple(values)


def image_input(spec: DataSpec, kind: str, smallest: int) -> tuple[int, int, int]:
    """Return (C, H, W) of the only input.

    Raises:
        CapabilityError: if the data isn't images, or they are smaller than ``smallest`` pixels a side.
    """
    shape = fixed_shape(spec, kind)
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


def fixed_shape(spec: DataSpec, kind: str) -> tuple[int, ...]:
    """Return the shape of the only input.

    Raises:
        CapabilityError: if the data has several inputs, or they are tokens.
    """
    item = single_input(spec, kind)
    if item.dtype != "float32":
        raise CapabilityError(
            field="model.kind",
            problem=f"'{kind}' reads numbers and the data gives tokens or identifiers",
            value=item.name,
            fix="use a model kind for sequences, such as 'lstm' or 'text_cnn'",
        )
    return tuple(size for size in item.shape if size is not None)


def token_input(spec: DataSpec, kind: str) -> InputSpec:
    """Return the only input, token ids (B, T) int64; its ``size`` is the vocabulary's.

    Raises:
        CapabilityError: if the data isn't token sequences.
    """
    item = single_input(spec, kind)
    if item.dtype != "int64" or item.shape != (None,):
        raise CapabilityError(
            field="model.kind",
            problem=f"'{kind}' reads token sequences and the data gives something else",
            value=item.name,
            fix="use text data, or 'mlp' for tables and 'cnn' for images",
        )
    return item
