"""A graph from elsewhere as a stage: the original is kept, and float models of it are made for the runtimes.

Each gets a free batch axis and folded constants. A draft counts only if it answers as the original does, at
every probe; verification compares the written files once more, in a process of its own.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmdist.compression.config import CompressConfig
from fmdist.compression.manifest import describe
from fmdist.compression.openvino_files import save_openvino
from fmdist.compression.original import Hosted
from fmdist.compression.ownership import scratch
from fmdist.compression.stage import Done, Stages
from fmdist.compression.subject import Subject
from fmdist.compression.verification import TOLERANCE
from fmdist.contracts import ExportSpec
from fmdist.deployment.runtime import load_openvino, open_model
from fmdist.environment import ARTIFACT, versions
from fmdist.errors import CompressionError, FmdistError

FOLDER = "original"

log = logging.getLogger(__name__)


def import_graph(
    subject: Subject, config: CompressConfig, stages: Stages, chosen: Mapping[str, str], signature: Signature
) -> Done:
    """Write a graph from elsewhere for the runtimes, if it isn't done yet.

    Args:
        subject: its module is a `Hosted`.
        config: says for which runtimes.
        stages: of the artifact.
        chosen: runtime -> the file that its model goes to, below the artifact.
        signature: returns what the subject reads and answers, as the manifest has it.

    Raises:
        CompressionError: if a runtime's model can't be made.
    """
    spec = subject.export
    module = spec.module
    assert isinstance(module, Hosted)
    source = module.original.file

    def work(_: Path) -> tuple[dict[str, Any], list[str]]:
        output = stages.output
        kept = output / FOLDER / source.name
        for file in (kept, *(output / file for file in chosen.values())):
            file.parent.mkdir(exist_ok=True)
        for part in _parts(source):
            shutil.copyfile(part, kept.with_suffix(part.suffix))
        folded: dict[str, dict[str, int]] = {}
        skipped: dict[str, str] = {}
        with scratch(output) as folder:
            drafts = _drafts(spec, module, folder, chosen, folded, skipped)
            _check_all(drafts, chosen, skipped, required=config.runtimes is not None)
            for runtime, draft in drafts.items():
                for part in _parts(draft):
                    part.replace((output / chosen[runtime]).with_suffix(part.suffix))
        models = {runtime: describe(output, chosen[runtime]) for runtime in drafts}
        weights = describe(output, kept.relative_to(output).as_posix())
        record = {
            "variant": "fp32",
            "models": models,
            "weights": weights,
            "signature": signature(subject),
            "parameters": _parameters(module),
            "batch": module.original.batch,
            "nodes": folded,
            "skipped": skipped,
        }
        return record, [*weights["files"], *(file for found in models.values() for file in found["files"])]

    inputs = {
        "fingerprint": subject.fingerprint,
        "files": dict(chosen),
        "axes": spec.dynamic_axes,
        "names": [spec.input_names, spec.output_names],
        "outputs": len(subject.splits.spec.target.names),
        "probes": spec.probes,
        "versions": versions(ARTIFACT),
    }
    return stages.run("import", inputs, work)


Signature = Callable[[Subject], dict[str, Any]]


def _drafts(
    spec: ExportSpec,
    module: Hosted,
    folder: Path,
    chosen: Mapping[str, str],
    folded: dict[str, dict[str, int]],
    skipped: dict[str, str],
) -> dict[str, Path]:
    """Return a faithful model per runtime; note how many nodes were folded, and why one has none."""
    drafts: dict[str, Path] = {}
    source = module.original.file
    if "onnxruntime" in chosen:
        file = folder / "model.onnx"
        try:
            folded["onnxruntime"] = _onnx(spec, module, file)
            drafts["onnxruntime"] = source = file
        except CompressionError as error:
            skipped["onnxruntime"] = error.problems[0].problem
    elif source.suffix == ".onnx":
        file = folder / "read.onnx"
        try:
            _onnx(spec, module, file)
            source = file
        except CompressionError:  # OpenVINO frees axes by itself, and often can where a rewritten file can't
            log.debug("OpenVINO reads the ONNX file as it came")
    if "openvino" in chosen:
        file = folder / "model.xml"
        try:
            folded["openvino"] = _openvino(spec, source, file)
            _check_faithful(spec, module, file, "openvino")
            drafts["openvino"] = file
        except CompressionError as error:
            skipped["openvino"] = error.problems[0].problem
    return drafts


def _check_all(
    drafts: Mapping[str, Path], chosen: Mapping[str, str], skipped: Mapping[str, str], required: bool
) -> None:
    if not drafts or (required and skipped):
        runtime = next(runtime for runtime in chosen if runtime in skipped)
        raise CompressionError(
            field=f"compress.import.{runtime}",
            problem=skipped[runtime],
            fix="export the model with a free (dynamic) batch axis, or leave the runtime out of "
            "compress.runtimes",
        )
    for runtime, reason in skipped.items():
        log.warning("%s gets no model: %s", runtime, reason)


def _onnx(spec: ExportSpec, module: Hosted, file: Path) -> dict[str, int]:
    """Write an ONNX model with free axes and folded constants; return how many nodes it had and has."""
    import onnx

    before = len(onnx.load(str(module.original.file)).graph.node)
    problem = ""
    for model in _freed(spec, module):
        rewritten = file.with_name("freed.onnx")
        onnx.save(model, str(rewritten))
        try:
            _fold_onnx(rewritten, file)
            _check_faithful(spec, module, file, "onnxruntime")
        except FmdistError as error:
            problem = problem or error.problems[0].problem
            continue
        return {"before": before, "after": len(onnx.load(str(file)).graph.node)}
    raise CompressionError(field="compress.import.onnxruntime", problem=problem)


def _freed(spec: ExportSpec, module: Hosted) -> Iterator[Any]:
    """Yield the graph with the task's free axes; if its batch was fixed, first one whose reshapes follow."""
    import onnx

    for rewrite in (True, False) if module.original.batch is not None else (False,):
        model = onnx.load(str(module.original.file))
        graph = model.graph
        for value in (*graph.input, *graph.output):
            axes = spec.dynamic_axes.get(value.name, {})
            for axis, size in enumerate(value.type.tensor_type.shape.dim):
                if axis in axes:
                    size.dim_param = axes[axis]
        if module.original.batch is not None:
            del graph.value_info[:]  # they speak of the fixed batch
        if rewrite:
            _free_reshapes(graph, module.original.batch)
        yield model


def _free_reshapes(graph: Any, batch: int | None) -> None:
    """Let reshapes to a constant shape that begins with the batch take over their input's first axis."""
    from onnx import numpy_helper

    constants = {value.name: value for value in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].HasField("t"):
            constants[node.output[0]] = node.attribute[0].t
    for node in graph.node:
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        stored = constants[node.input[1]]
        shape = numpy_helper.to_array(stored).copy()
        if len(shape) and shape[0] == batch:
            shape[0] = 0  # as the input has it, unless an attribute says that zero is zero
            stored.CopyFrom(numpy_helper.from_array(shape, stored.name))
            for attribute in node.attribute:
                if attribute.name == "allowzero":
                    attribute.i = 0


def _fold_onnx(source: Path, file: Path) -> None:
    """Let ONNX Runtime fold constants and drop what nobody needs; what remains are operators of the standard.

    Raises:
        CompressionError: if it can't read the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(file)
    try:
        onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # ONNX Runtime's own exceptions derive from Exception and share no base class.
        if not type(error).__module__.startswith("onnxruntime"):
            raise
        raise _unusable(file, str(error)) from error


def _openvino(spec: ExportSpec, source: Path, file: Path) -> dict[str, int]:
    """Write an IR with free axes, float32 weights and folded constants; return its numbers of nodes."""
    openvino = load_openvino()
    from openvino.passes import ConstantFolding, Manager

    try:
        model = openvino.Core().read_model(str(source))
        before = len(model.get_ops())
        shapes = {}
        for port in model.inputs:
            free = spec.dynamic_axes.get(port.get_any_name(), {})
            shapes[port] = openvino.PartialShape(
                [
                    -1 if axis in free or size.is_dynamic else size.get_length()
                    for axis, size in enumerate(port.get_partial_shape())
                ]
            )
        model.reshape(shapes)
        _widen(model)
        manager = Manager()
        manager.register_pass(ConstantFolding())
        manager.run_passes(model)
    except RuntimeError as error:
        raise _unusable(file, str(error)) from error
    save_openvino(model, file)
    return {"before": before, "after": len(model.get_ops())}


def _widen(model: Any) -> None:
    """Make stored float16 weights float32, which `fp32` promises; their values stay."""
    openvino = load_openvino()
    from openvino import opset13

    for node in model.get_ordered_ops():
        if node.get_type_name() != "Convert" or node.get_element_type() != openvino.Type.f32:
            continue
        source = node.input_value(0).get_node()
        if source.get_type_name() == "Constant" and source.get_element_type() in (
            openvino.Type.f16,
            openvino.Type.bf16,
        ):
            wide = opset13.constant(source.get_data().astype(np.float32), dtype=np.float32)
            wide.set_friendly_name(source.get_friendly_name())
            node.output(0).replace(wide.output(0))


def _check_faithful(spec: ExportSpec, module: Hosted, file: Path, runtime: str) -> None:
    """Raise `CompressionError` unless a model answers as the original does, at every probe."""
    session = open_model(file, runtime, "f32")
    for probe in spec.probes:
        values = spec.example_inputs(*probe)
        with torch.no_grad():
            expected = module(*values).numpy()
        try:
            found = session.run(
                {name: value.numpy() for name, value in zip(spec.input_names, values, strict=True)}
            )
        except Exception as error:
            if isinstance(error, RuntimeError) or type(error).__module__.startswith("onnxruntime"):
                raise _unusable(file, str(error)) from error
            raise
        scale = float(np.abs(expected).max())
        if found.shape != expected.shape or not float(np.abs(found - expected).max()) <= TOLERANCE * scale:
            problem = f"at batch size {probe[0]} its answers aren't the original's"
            raise _unusable(file, problem)


def _unusable(file: Path, said: str) -> CompressionError:
    runtime = "openvino" if file.suffix == ".xml" else "onnxruntime"
    return CompressionError(
        field=f"compress.import.{runtime}",
        problem=f"the model doesn't run there with a free batch axis ({' '.join(said.split())[:200]})",
    )


def _parts(file: Path) -> list[Path]:
    return [file, file.with_suffix(".bin")] if file.suffix == ".xml" else [file]


def _parameters(module: Hosted) -> int:
    """Return how many floats the original stores."""
    file = module.original.file
    if file.suffix == ".onnx":
        import onnx

        graph = onnx.load(str(file)).graph
        floats = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)
        return sum(int(np.prod(value.dims)) for value in graph.initializer if value.data_type in floats)
    return sum(
        int(np.prod(node.get_output_shape(0)))
        for node in load_openvino().Core().read_model(str(file)).get_ops()
        if node.get_type_name() == "Constant" and node.get_element_type().is_real()
    )
