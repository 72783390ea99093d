"""Which layers of an exported model hold INT8 weights, and which don't, by name.

A layer's weights are its constant inputs of two or more dimensions; biases and normalization, which stay in
float, are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from fmdist.deployment.runtime import load_openvino

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
_OPENVINO_BETWEEN = {"Convert", "Multiply", "Subtract", "Reshape", "Transpose", "FakeQuantize"}
_ONNX = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Gather", "LSTM", "GRU", "RNN"}
_ONNX_BETWEEN = {"DequantizeLinear", "Transpose", "Reshape", "Identity"}


class Layer(NamedTuple):
    """One layer's weights."""

    name: str
    type: str
    shape: tuple[int, ...]
    quantized: bool


def openvino_layers(file: Path) -> list[Layer]:
    """Return the layers of an OpenVINO IR that have weights."""
    model = load_openvino().Core().read_model(str(file))
    found = []
    for node in model.get_ordered_ops():
        if node.get_type_name() not in _OPENVINO:
            continue
        for port in node.inputs():
            source = port.get_source_output().get_node()
            while source.get_type_name() in _OPENVINO_BETWEEN:
                source = source.input_value(0).get_node()
            if source.get_type_name() != "Constant" or len(source.get_output_shape(0)) < 2:
                continue
            kind = source.get_element_type().get_type_name()
            layer = Layer(
                node.get_friendly_name(),
                node.get_type_name(),
                tuple(source.get_output_shape(0)),
                kind in {"i8", "u8"},
            )
            found.append(layer)
    return found


def onnx_layers(file: Path) -> list[Layer]:
    """Return the layers of an ONNX model that have weights."""
    import onnx

    graph = onnx.load(str(file)).graph
    initializers = {value.name: value for value in graph.initializer}
    producers = {output: node for node in graph.node for output in node.output}
    int8 = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}
    found = []
    for node in graph.node:
        if node.op_type not in _ONNX:
            continue
        for name in node.input:
            while name in producers and producers[name].op_type in _ONNX_BETWEEN:
                name = producers[name].input[0]
            value = initializers.get(name)
            if value is not None and len(value.dims) >= 2:
                found.append(
                    Layer(node.name or name, node.op_type, tuple(value.dims), value.data_type in int8)
                )
    return found


def summarize(layers: list[Layer], reasons: Mapping[str, str], default_reason: str) -> dict[str, Any]:
    """Return the coverage record of the manifest.

    Args:
        layers: of the compressed model.
        reasons: layer name -> why it was left in float.
        default_reason: for those of which nothing is known.
    """
    return {
        "layers": len(layers),
        "changed_layers": sum(layer.quantized for layer in layers),
        "parameters": sum(prod(layer.shape) for layer in layers),
        "changed_parameters": sum(prod(layer.shape) for layer in layers if layer.quantized),
        "left": list(_left(layers, reasons, default_reason)),
    }


def _left(layers: list[Layer], reasons: Mapping[str, str], default: str) -> Iterator[dict[str, Any]]:
    for layer in layers:
        if layer.quantized:
            continue
        recurrent = layer.type.startswith(("LSTM", "GRU", "RNN"))
        reason = "recurrent weights are not quantized by this method" if recurrent else default
        yield {
            "name": layer.name,
            "type": layer.type,
            "shape": list(layer.shape),
            "parameters": prod(layer.shape),
            "reason": reasons.get(layer.name, reason),
        }
