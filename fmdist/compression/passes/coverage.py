"""In which precision the layers of an exported model hold their weights, by name.

A layer's weights are its constant inputs of two or more dimensions; biases and normalization, which stay in
float, are not counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from fmdist.deployment.runtime import load_openvino
from fmdist.errors import CompressionError

_OPENVINO = {
    "Convolution",
    "GroupConvolution",
    "ConvolutionBackpropData",
    "GroupConvolutionBackpropData",
    "MatMul",
    "Gather",
    "LSTMSequence",
    "GRUSequence",
    "RNNSequence",
    "LSTMCell",
    "GRUCell",
    "RNNCell",
}
_PRECISIONS = {
    **dict.fromkeys(("f32", "f16", "bf16", "f64", "float", "float16", "bfloat16", "double"), "float"),
    **dict.fromkeys(("i8", "u8", "int8", "uint8"), "int8"),
    **dict.fromkeys(("i4", "u4", "int4", "uint4"), "int4"),
    "nf4": "nf4",
}
_OPENVINO_BETWEEN = {"Convert", "Multiply", "Subtract", "Reshape", "Transpose", "FakeQuantize"}
_ONNX = {"Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulNBits", "Gather", "LSTM", "GRU", "RNN"}
_ONNX_BETWEEN = {"DequantizeLinear", "Transpose", "Reshape", "Identity"}


PRODUCTS = ("MatMul", "Gemm")
"""Types of layers that multiply by a matrix."""
EMBEDDING = "Gather"
"""The type of a layer that looks rows up."""

_NBITS = "_compressed_matmul"
"""What NNCF adds to the name of an ONNX product whose weights it groups."""


class Layer(NamedTuple):
    """One layer's weights."""

    name: str
    type: str
    shape: tuple[int, ...]
    """As stored: weights in groups have one more dimension."""
    precision: str
    """``float``, ``int8``, ``int4`` or ``nf4``."""
    width: int | None = None
    """Of a product in float, the length of its sums; of an embedding in float, that of its rows."""

    @property
    def quantized(self) -> bool:
        """Whether the weights are smaller than floats."""
        return self.precision != "float"


def openvino_layers(file: Path) -> list[Layer]:
    """Return the layers of an OpenVINO IR that have weights."""
    model = load_openvino().Core().read_model(str(file))
    found = []
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind not in _OPENVINO:
            continue
        for position, port in enumerate(node.inputs()):
            source = port.get_source_output().get_node()
            while source.get_type_name() in _OPENVINO_BETWEEN:
                source = source.input_value(0).get_node()
            if source.get_type_name() != "Constant" or len(source.get_output_shape(0)) < 2:
                continue
            # Integers that aren't weights, such as positions, are in no precision.
            precision = _PRECISIONS.get(source.get_element_type().get_type_name())
            if precision is not None:
                shape = tuple(source.get_output_shape(0))
                flipped = kind == "MatMul" and node.get_attributes()[f"transpose_{'ab'[position]}"]
                width = _width(kind, shape, position, flipped)
                found.append(Layer(node.get_friendly_name(), kind, shape, precision, width))
    return found


def onnx_layers(file: Path) -> list[Layer]:
    """Return the layers of an ONNX model that have weights."""
    import onnx

    graph = onnx.load(str(file)).graph
    initializers = {value.name: value for value in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    found = []
    for node in graph.node:
        if node.op_type not in _ONNX:
            continue
        attributes = {item.name: item.i for item in node.attribute}
        if node.op_type == "MatMulNBits":
            shape = (attributes["N"], attributes["K"])
            name = node.name.removesuffix(_NBITS)
            found.append(Layer(name, "MatMul", shape, f"int{attributes['bits']}", attributes["K"]))
            continue
        for position, source in enumerate(node.input):
            while source in producers and producers[source].op_type in _ONNX_BETWEEN:
                source = producers[source].input[0]
            value = initializers.get(source)
            if value is None or len(value.dims) < 2:
                continue
            precision = _PRECISIONS.get(onnx.TensorProto.DataType.Name(value.data_type).lower())
            if precision is not None:
                flipped = bool(attributes.get(f"trans{'AB'[position]}")) if node.op_type == "Gemm" else False
                width = _width(node.op_type, tuple(value.dims), position, flipped)
                found.append(Layer(node.name or source, node.op_type, tuple(value.dims), precision, width))
    return found


def _width(kind: str, shape: tuple[int, ...], position: int, flipped: bool) -> int | None:
    """Return `Layer.width` of the weights that are the operand at ``position``."""
    if kind == EMBEDDING:
        return shape[-1]
    if kind not in PRODUCTS:
        return None
    return shape[-1] if (position == 0) != flipped else shape[-2]


def after(before: Sequence[Layer], compressed: Sequence[Layer]) -> list[Layer]:
    """Return the layers of ``before`` with the precisions that they have in the compressed model.

    Raises:
        CompressionError: if a layer is not in the compressed model.
    """
    named: dict[str, list[Layer]] = {}
    for layer in compressed:
        named.setdefault(layer.name, []).append(layer)
    found = []
    for layer in before:
        if not named.get(layer.name):
            raise CompressionError(
                field="compress.passes",
                problem="the compressed model lacks a layer of the original",
                value=layer.name,
                fix="leave the pass out, or have it ignore this layer",
            )
        found.append(layer._replace(precision=named[layer.name].pop(0).precision))
    return found


def summarize(
    layers: Sequence[Layer], reasons: Mapping[str, str], default_reason: str, asked: str = "int8"
) -> dict[str, Any]:
    """Return the coverage record of the manifest.

    Args:
        layers: of the compressed model.
        reasons: layer name -> why it was left in another precision.
        default_reason: for those of which nothing is known.
        asked: the precision that counts as changed.
    """
    changed = [layer for layer in layers if layer.precision == asked]
    return {
        "layers": len(layers),
        "changed_layers": len(changed),
        "parameters": sum(prod(layer.shape) for layer in layers),
        "changed_parameters": sum(prod(layer.shape) for layer in changed),
        "precisions": dict(sorted(Counter(layer.precision for layer in layers).items())),
        "left": list(_left([layer for layer in layers if layer.precision != asked], reasons, default_reason)),
    }


def _left(layers: Sequence[Layer], reasons: Mapping[str, str], default: str) -> Iterator[dict[str, Any]]:
    for layer in layers:
        recurrent = layer.type.startswith(("LSTM", "GRU", "RNN"))
        reason = "recurrent weights are not quantized by this method" if recurrent else default
        yield {
            "name": layer.name,
            "type": layer.type,
            "shape": list(layer.shape),
            "parameters": prod(layer.shape),
            "reason": reasons.get(layer.name, reason),
        }
