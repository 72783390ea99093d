"""Graphs from elsewhere, ONNX or OpenVINO IR: read with care, written under the names that a task uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fmdist.compression.openvino_files import save_openvino
from fmdist.compression.ports import OUTPUT, Matched, Port
from fmdist.compression.vetting import check_ir, damaged, read_onnx
from fmdist.deployment.runtime import load_openvino
from fmdist.errors import CapabilityError

_MOST_BYTES = 2**31 - 1
"""Of one ONNX file: a limit of protobuf."""

_ROUNDED_ONNX = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "ConvInteger",
)
_ROUNDED_TYPES = ("i8", "u8", "i4", "u4", "nf4")


@dataclass(frozen=True)
class Graph:
    """A model that was read and not run yet."""

    file: Path
    runtime: str
    """The one that runs it as it is."""
    model: Any
    """``onnx.ModelProto`` or ``openvino.Model``."""
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def save(self, matched: Matched, wanted: tuple[str, ...], folder: Path) -> Path:
        """Write it with the task's names and its one output; in all else, its batch too, it is as it was."""
        names = dict(zip((port.name for port in matched.inputs), wanted, strict=True))
        if self.runtime == "onnxruntime":
            return _save_onnx(self.model, names, matched.output.name, folder / "model.onnx")
        return _save_ir(self.model, names, matched.output.name, folder / "model.xml")


def read_graph(file: Path) -> Graph:
    """Read ``.onnx`` or ``.xml`` after `fmdist.compression.vetting` has looked at it.

    Raises:
        CheckpointError: if it is damaged, or reaches for files outside of its folder.
        CapabilityError: if it needs code from elsewhere, is too large, or its weights are integers already.
    """
    return _read_onnx(file) if file.suffix.lower() == ".onnx" else _read_ir(file)


def _read_onnx(file: Path) -> Graph:
    import onnx

    model = read_onnx(file)
    if model.ByteSize() > _MOST_BYTES:
        raise CapabilityError(
            field=str(file),
            problem="with its data, the model is larger than one ONNX file can be",
            value=model.ByteSize(),
            allowed=f"{_MOST_BYTES} bytes",
            fix="export it as OpenVINO IR or .pt2",
        )
    if model.functions:
        import onnx.inliner

        model = onnx.inliner.inline_local_functions(model)
    for node in model.graph.node:
        if node.op_type in _ROUNDED_ONNX or node.op_type.startswith("QLinear"):
            raise _rounded(file, node.op_type)
    constants = {value.name for value in model.graph.initializer}
    kept = [value for value in model.graph.input if value.name not in constants]
    del model.graph.input[:]
    model.graph.input.extend(kept)  # older files list the weights among the inputs
    inputs, outputs = (tuple(map(_onnx_port, side)) for side in (model.graph.input, model.graph.output))
    return Graph(file, "onnxruntime", model, inputs, outputs)


def _onnx_port(value: Any) -> Port:
    import onnx

    kind = value.type.tensor_type
    shape = None
    if kind.HasField("shape"):
        shape = tuple(size.dim_value if size.HasField("dim_value") else None for size in kind.shape.dim)
    # 0 where the value is no tensor: a sequence, a map.
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name if kind.elem_type else "no tensor"
    return Port(value.name, dtype, shape)


def _save_onnx(model: Any, names: Mapping[str, str], output: str, file: Path) -> Path:
    import onnx

    graph = model.graph
    renamed = {**names, output: OUTPUT}
    used = {name for node in graph.node for name in (*node.input, *node.output)}
    for new in set(renamed.values()) & (used - renamed.keys()):
        renamed[new] = _unused(f"{new}_inner", used)
    kept = [value for value in graph.output if value.name == output]
    del graph.output[:]
    graph.output.extend(kept)
    _rename(graph, renamed)
    onnx.save(model, str(file))
    return file


def _unused(name: str, used: set[str]) -> str:
    while name in used:
        name += "_"
    return name


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    for value in (*graph.input, *graph.output, *graph.value_info, *graph.initializer):
        value.name = names.get(value.name, value.name)
    for node in graph.node:
        for side in (node.input, node.output):
            for place, name in enumerate(side):
                side[place] = names.get(name, name)
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                _rename(inner, names)


def _read_ir(file: Path) -> Graph:
    check_ir(file)
    openvino = load_openvino()
    try:
        model = openvino.Core().read_model(str(file))
    except RuntimeError as error:
        raise damaged(file, error) from None
    for node in model.get_ops():
        kind = node.get_type_name()
        source = node.input_value(0).get_node() if kind == "Convert" else None
        stored = source is not None and source.get_type_name() == "Constant"
        if kind == "FakeQuantize" or (
            stored and source is not None and source.get_element_type().get_type_name() in _ROUNDED_TYPES
        ):
            raise _rounded(file, kind)
    return Graph(
        file,
        "openvino",
        model,
        tuple(map(_ir_port, model.inputs)),
        tuple(map(_ir_port, model.outputs)),
    )


def _ir_port(port: Any) -> Port:
    shape = port.get_partial_shape()
    sizes = None
    if not shape.rank.is_dynamic:
        sizes = tuple(size.get_length() if size.is_static else None for size in shape)
    name = next(iter(sorted(port.get_names())), port.get_node().get_friendly_name())
    return Port(name, np.dtype(port.get_element_type().to_dtype()).name, sizes)


def _save_ir(model: Any, names: Mapping[str, str], output: str, file: Path) -> Path:
    openvino = load_openvino()
    ports = [(port, _ir_port(port).name) for port in model.inputs]
    answer = next(port for port in model.outputs if _ir_port(port).name == output)
    for port, name in ports:
        port.get_tensor().set_names({names[name]})
    answer.get_tensor().set_names({OUTPUT})
    parameters = [port.get_node() for port, _ in ports]
    alone = openvino.Model([answer.get_node()], parameters, "model")
    save_openvino(alone, file)
    return file


def _rounded(file: Path, kind: str) -> CapabilityError:
    return CapabilityError(
        field=str(file),
        problem="the model's weights or activations are rounded to integers already",
        value=kind,
        allowed="a float model",
        fix="give the model from before its quantization",
    )
