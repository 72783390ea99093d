"""One way to run a model file in OpenVINO or ONNX Runtime, on the CPU.

Shapes: B batch.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from fmdist import component
from fmdist.errors import CheckpointError, UsageError, did_you_mean

Runtime = Literal["openvino", "onnxruntime"]
Precision = Literal["f32", "default"]
Inputs = Mapping[str, NDArray[Any]]

RUNTIMES: tuple[Runtime, ...] = ("openvino", "onnxruntime")
PRECISIONS: tuple[Precision, ...] = ("f32", "default")

_OPENVINO_LAYERS = {"Convolution", "Deconvolution", "FullyConnected", "MatMul", "RNNCell", "RNNSeq"}
_PLAIN = {"u8": "int8", "i8": "int8", "uint8": "int8", "u4": "int4", "i4": "int4", "uint4": "int4"}
_COMPRESSED = {"int8", "int4", "nf4"}
_FLOATS = {"f32", "f16", "bf16"}
_ONNX_LAYERS = {
    "Conv": "f32",
    "FusedConv": "f32",
    "ConvTranspose": "f32",
    "Gemm": "f32",
    "FusedGemm": "f32",
    "MatMul": "f32",
    "FusedMatMul": "f32",
    "QLinearConv": "int8",
    "QGemm": "int8",
    "QLinearMatMul": "int8",
    "MatMulIntegerToFloat": "int8",
    "ConvInteger": "int8",
    "MatMulInteger": "int8",
}


class Session(Protocol):
    """A model that is ready to run."""

    def run(self, inputs: Inputs) -> NDArray[np.float32]:
        """Return the first output, batch first, for inputs by name."""
        ...

    def executed(self) -> dict[str, int]:
        """Return in which precision the layers with weights really run, with how many each.

        ``f32 with int4 weights``: layers that take and give float32, and only store their weights in 4 bits.
        At the default precision OpenVINO may round what such a layer takes to 8 bits within it.
        """
        ...


def open_model(
    file: Path, runtime: str, precision: str = "default", threads: int | None = None
) -> OpenVinoSession | OnnxSession:
    """Open ``file`` in a runtime.

    Args:
        file: an OpenVINO IR (``.xml`` with its ``.bin`` beside it) or an ONNX model.
        runtime: ``openvino`` or ``onnxruntime``.
        precision: ``f32`` asks for float32 arithmetic outside of quantized layers; ``default`` leaves it to
            the runtime (OpenVINO takes bfloat16 where the CPU has it; ONNX Runtime always takes float32).
        threads: CPU threads; None leaves it to the runtime.

    Raises:
        UsageError: for an unknown runtime or precision.
        DependencyMissing: if the runtime is not installed.
        CheckpointError: if the runtime can't read the file.
    """
    check_choice("runtime", runtime, RUNTIMES)
    check_choice("precision", precision, PRECISIONS)
    kind = OpenVinoSession if runtime == "openvino" else OnnxSession
    try:
        return kind(file, precision, threads)
    except ModuleNotFoundError as error:
        component.require("compress", needed_by=f"runtime '{runtime}'")
        raise error
    except RuntimeError as error:
        raise CheckpointError(
            field=str(file), problem=f"{runtime} can't read this model ({str(error).splitlines()[0]})"
        ) from error


def check_choice(field: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise `UsageError` unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        raise UsageError(
            field=field,
            problem="unknown value",
            value=value,
            allowed=", ".join(allowed),
            fix=did_you_mean(value, allowed),
        )


def load_openvino() -> Any:
    """Import OpenVINO without its telemetry: what people run and compress here is nobody else's business."""
    # OpenVINO and NNCF do without a package that can't be imported, and this makes it so.
    sys.modules.setdefault("openvino_telemetry", cast(ModuleType, None))
    import openvino

    return openvino


class OpenVinoSession:
    """A compiled OpenVINO model."""

    def __init__(self, file: Path, precision: str, threads: int | None) -> None:
        openvino = load_openvino()
        options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if precision == "f32":
            options["INFERENCE_PRECISION_HINT"] = "f32"
            # Else layers with compressed weights round their inputs to 8 bits.
            options["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "0"
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        self.compiled = openvino.Core().compile_model(str(file), "CPU", options)
        self._request = self.compiled.create_infer_request()

    def run(self, inputs: Inputs) -> NDArray[np.float32]:
        """See `Session.run`."""
        outputs = self._request.infer(dict(inputs), share_inputs=True, share_outputs=True)
        # The runtime reuses this memory at the next call.
        return np.array(outputs[0], dtype=np.float32)

    def executed(self) -> dict[str, int]:
        """See `Session.executed`; read from the graph that the CPU plug-in runs."""
        counts: Counter[str] = Counter()
        for node in self.compiled.get_runtime_model().get_ops():
            facts = node.get_rt_info()
            if facts["layerType"].astype(str) in _OPENVINO_LAYERS:
                # The smaller of both operands' precisions, even if only the weights have it.
                precision = _plain_name(facts["runtimePrecision"].astype(str))
                source = node.input_value(0).get_node().get_rt_info()
                taken = source["outputPrecisions"].astype(str).split(",")[0]
                compressed = precision in _COMPRESSED and taken in _FLOATS
                counts[_with_weights(taken, precision) if compressed else precision] += 1
        return dict(sorted(counts.items()))


class OnnxSession:
    """An ONNX Runtime session on its CPU provider."""

    def __init__(self, file: Path, precision: str, threads: int | None) -> None:
        import onnxruntime

        self._file = file
        options = onnxruntime.SessionOptions()
        # Warnings about optimizations that don't apply are of no use to whoever runs a model.
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
            options.inter_op_num_threads = 1
        if not file.is_file():
            raise CheckpointError(field=str(file), problem="file not found")
        try:
            self._session = self._open(options)
        except Exception as error:
            # ONNX Runtime's own exceptions derive from Exception and share no base class.
            if type(error).__module__.startswith("onnxruntime"):
                raise RuntimeError(str(error)) from error
            raise

    def _open(self, options: Any) -> Any:
        import onnxruntime

        return onnxruntime.InferenceSession(str(self._file), options, providers=["CPUExecutionProvider"])

    def run(self, inputs: Inputs) -> NDArray[np.float32]:
        """See `Session.run`."""
        return np.asarray(self._session.run(None, dict(inputs))[0], dtype=np.float32)

    def executed(self) -> dict[str, int]:
        """See `Session.executed`; read from the graph as the runtime optimized it (needs onnx)."""
        import onnx
        import onnxruntime

        with tempfile.TemporaryDirectory() as folder:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
            self._open(options)
            graph = onnx.load(options.optimized_model_filepath).graph
        kinds = {value.name: onnx.TensorProto.DataType.Name(value.data_type) for value in graph.initializer}
        stored = {
            node.output[0]: _plain_name(kinds[node.input[0]].lower())
            for node in graph.node
            if node.op_type == "DequantizeLinear" and node.input[0] in kinds
        }
        counts: Counter[str] = Counter()
        for node in graph.node:
            if node.op_type == "MatMulNBits":
                bits = next(item.i for item in node.attribute if item.name == "bits")
                counts[_with_weights("f32", f"int{bits}")] += 1
            elif node.op_type in _ONNX_LAYERS:
                # Biases are dequantized too, so the weights are the second operand, or else the first.
                weights = next((stored[name] for name in reversed(node.input[:2]) if name in stored), None)
                precision = _ONNX_LAYERS[node.op_type]
                counts[precision if weights is None else _with_weights(precision, weights)] += 1
        return dict(sorted(counts.items()))


def _plain_name(precision: str) -> str:
    return _PLAIN.get(precision, precision)


def _with_weights(precision: str, weights: str) -> str:
    return f"{precision} with {weights} weights"
