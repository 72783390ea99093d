"""What makes ONNX Runtime compute in INT8 what torch exports with quantizers; no weight gets another value.

Shapes: O outputs.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_WEIGHTED = ("Conv", "ConvTranspose")


def fold(graph: Any) -> None:
    """Change an ``onnx.GraphProto`` in place.

    Constants that are quantized when the model runs become integers; a transposition of them becomes theirs;
    and BatchNorm goes into the scale of the convolution's integers and into its bias, without which the
    runtime would find no quantized result after the convolution and compute it in float.
    """
    known = _Constants(graph)
    for node in list(graph.node):
        if node.op_type == "QuantizeLinear" and node.input[0] in known:
            _fold_quantize(known, node)
    for node in list(graph.node):
        if node.op_type == "Transpose":
            _fold_transpose(known, node)
    for node in list(graph.node):
        if node.op_type == "BatchNormalization":
            _fold_norm(known, node)
    known.remove_unused()


class _Constants:
    """A graph's constant tensors, in whatever form they are."""

    def __init__(self, graph: Any) -> None:
        from onnx import numpy_helper

        self.graph = graph
        self._arrays = numpy_helper
        for node in [node for node in graph.node if node.op_type == "Constant"]:
            tensors = [item.t for item in node.attribute if item.name == "value"]
            if tensors:
                tensors[0].name = node.output[0]
                graph.initializer.append(tensors[0])
                graph.node.remove(node)
        self._held = {value.name: value for value in graph.initializer}
        for node in [node for node in graph.node if node.op_type == "Identity" and node.input[0] in self]:
            # Of equal constants torch's exporter writes one.
            if not any(value.name == node.output[0] for value in graph.output):
                self.bypass(node, node.input[0])

    def __contains__(self, name: str) -> bool:
        return name in self._held

    def __getitem__(self, name: str) -> NDArray[Any]:
        found: NDArray[Any] = self._arrays.to_array(self._held[name])
        return found

    def add(self, name: str, value: NDArray[Any]) -> str:
        """Hold a new constant; return its name."""
        self.graph.initializer.append(self._arrays.from_array(np.ascontiguousarray(value), name))
        self._held[name] = self.graph.initializer[-1]
        return name

    def maker(self, output: str) -> Any | None:
        """Return the node that makes ``output``."""
        return next((node for node in self.graph.node if output in node.output), None)

    def users(self, output: str) -> list[Any]:
        """Return the nodes that take ``output``; something that isn't one if it leaves the graph."""
        found = [node for node in self.graph.node if output in node.input]
        return found + [value for value in self.graph.output if value.name == output]

    def bypass(self, node: Any, name: str) -> None:
        """Remove a node of one output; who took it takes ``name``."""
        for other in self.graph.node:
            for position, taken in enumerate(other.input):
                if taken == node.output[0]:
                    other.input[position] = name
        self.graph.node.remove(node)

    def remove_unused(self) -> None:
        used = {name for node in self.graph.node for name in node.input}
        used |= {value.name for value in self.graph.output}
        for value in [value for value in self.graph.initializer if value.name not in used]:
            self.graph.initializer.remove(value)


def _attribute(node: Any, name: str, default: Any = None) -> Any:
    from onnx import helper

    found = [helper.get_attribute_value(item) for item in node.attribute if item.name == name]
    return found[0] if found else default


def _fold_quantize(known: _Constants, node: Any) -> None:
    value, scale, zero = (known[name] for name in node.input[:3])
    if scale.ndim:
        shape = [1] * value.ndim
        shape[_attribute(node, "axis", 1)] = -1
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    limits = np.iinfo(zero.dtype)
    integers = np.clip(np.rint(value / scale) + zero, limits.min, limits.max).astype(zero.dtype)
    known.bypass(node, known.add(f"{node.output[0]}_integers", integers))


def _fold_transpose(known: _Constants, node: Any) -> None:
    dequantize = known.maker(node.input[0])
    if dequantize is None or dequantize.op_type != "DequantizeLinear" or dequantize.input[0] not in known:
        return
    if len(known.users(node.input[0])) > 1:
        return
    integers = known[dequantize.input[0]]
    order = list(_attribute(node, "perm", range(integers.ndim)[::-1]))
    dequantize.input[0] = known.add(f"{node.output[0]}_integers", integers.transpose(order))
    for item in dequantize.attribute:
        if item.name == "axis" and known[dequantize.input[1]].ndim:
            item.i = order.index(item.i)
    known.bypass(node, dequantize.output[0])


def _fold_norm(known: _Constants, node: Any) -> None:
    """Fold a BatchNorm into the convolution before it, if nothing else takes what that gives."""
    layer = known.maker(node.input[0])
    if layer is None or layer.op_type not in _WEIGHTED or len(known.users(node.input[0])) > 1:
        return
    dequantize = known.maker(layer.input[1])
    if dequantize is None or dequantize.op_type != "DequantizeLinear" or dequantize.input[0] not in known:
        return
    weight_O, bias_O, mean_O, variance_O = (known[name].astype(np.float64) for name in node.input[1:5])
    factor_O = weight_O / np.sqrt(variance_O + _attribute(node, "epsilon", 1e-5))
    old_O = known[layer.input[2]] if len(layer.input) > 2 else np.zeros_like(mean_O)
    axis = 0 if layer.op_type == "Conv" else 1
    grouped = axis == 1 and _attribute(layer, "group", 1) > 1  # then outputs lie along two axes
    if grouped or not _rescale(known, dequantize, factor_O, axis):
        return
    name = known.add(f"{layer.name}_folded_bias", ((old_O - mean_O) * factor_O + bias_O).astype(np.float32))
    if len(layer.input) > 2:
        layer.input[2] = name
    else:
        layer.input.append(name)
    known.bypass(node, layer.output[0])


def _rescale(known: _Constants, dequantize: Any, factor_O: NDArray[np.float64], axis: int) -> bool:
    """Multiply dequantized weights, per output, through their scales; return False if that can't be exact."""
    integers, scale = known[dequantize.input[0]], known[dequantize.input[1]].astype(np.float64)
    zero = known[dequantize.input[2]]
    if len(known.users(dequantize.output[0])) > 1 or zero.any() or integers.dtype != np.int8:
        return False
    if scale.ndim and _attribute(dequantize, "axis", 1) != axis:
        return False
    shape = [1] * integers.ndim
    shape[axis] = -1
    # A scale is positive: where the factor isn't, the integers turn their sign, which -128 can't.
    turned_O = factor_O < 0
    signs = np.where(turned_O, -1, 1).reshape(shape)
    if (integers.astype(np.int16) * signs > 127).any():
        return False
    name = dequantize.output[0]
    scales_O = np.maximum(np.abs(factor_O) * scale, np.finfo(np.float32).tiny).astype(np.float32)
    dequantize.input[0] = known.add(f"{name}_folded", (integers * signs).astype(np.int8))
    dequantize.input[1] = known.add(f"{name}_folded_scale", scales_O)
    dequantize.input[2] = known.add(f"{name}_folded_zero", np.zeros(len(scales_O), np.int8))
    if not any(item.name == "axis" for item in dequantize.attribute):
        from onnx import helper

        dequantize.attribute.append(helper.make_attribute("axis", axis))
    for item in dequantize.attribute:
        if item.name == "axis":
            item.i = axis
    return True
