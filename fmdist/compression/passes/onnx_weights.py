"""Makes what NNCF (3.4) writes for ONNX what ONNX Runtime (1.31) reads; no weight changes its value.

NNCF leaves axes of length 1 on the scales of convolutions, which have to be vectors, and gives the 4-bit zero
point of each group a byte of its own, where two have to share one.

Shapes: N outputs, G groups.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np


def repair(model: Any) -> None:
    """Change an ``onnx.ModelProto`` that NNCF compressed, in place."""
    initializers = {value.name: value for value in model.graph.initializer}
    for node in model.graph.node:
        attributes = {item.name: item.i for item in node.attribute}
        if node.op_type == "DequantizeLinear" and not attributes.get("block_size"):
            for name in node.input[1:]:
                if name in initializers and len(initializers[name].dims) > 1:
                    _flatten(initializers[name])
        if node.op_type == "MatMulNBits" and len(node.input) > 3 and node.input[3] in initializers:
            groups = -(-attributes["K"] // attributes["block_size"])
            points = initializers[node.input[3]]
            if attributes["bits"] == 4 and list(points.dims) == [attributes["N"], groups]:
                _pack(points)


def _flatten(value: Any) -> None:
    size = prod(value.dims)
    del value.dims[:]
    value.dims.append(size)


def _pack(value: Any) -> None:
    from onnx import numpy_helper

    points_NG = numpy_helper.to_array(value)
    even_NG = np.pad(points_NG, ((0, 0), (0, points_NG.shape[1] % 2)))
    packed = even_NG[:, ::2] | (even_NG[:, 1::2] << 4)
    value.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(packed), value.name))
