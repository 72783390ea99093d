"""Files of models from elsewhere, checked before any runtime opens them.

What is refused: what could make a runtime read files that aren't the model's own, or load code. ONNX is read
as a message, without the data that it keeps in other files; OpenVINO's XML as text.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fmdist.errors import CapabilityError, CheckpointError, UsageError

FORMATS = {".onnx": "ONNX", ".xml": "OpenVINO IR", ".pt2": "torch.export", ".safetensors": "safetensors"}
"""Ending of a file -> what it holds."""

_PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
_STANDARD = ("", "ai.onnx", "ai.onnx.ml")
_OPSET = re.compile(r"opset\d+")


def check_format(file: Path, trusted: bool) -> None:
    """Check by its name what a file may hold.

    Args:
        file: the model.
        trusted: whether the user takes its word for it that it does no harm, which only ``.pt2`` needs.

    Raises:
        UsageError: if there is no such file, or it is of no known format.
        CapabilityError: for a format whose loading can run code.
    """
    if not file.is_file():
        raise UsageError(field=str(file), problem="no such file" if not file.exists() else "not a file")
    suffix = file.suffix.lower()
    if suffix in _PICKLES:
        raise CapabilityError(
            field=str(file),
            problem="such a file is a pickle, and reading one can run whatever code it names",
            value=suffix,
            allowed=", ".join(FORMATS),
            fix="save the weights with safetensors.torch.save_file(model.state_dict(), 'model.safetensors')",
        )
    if suffix not in FORMATS:
        raise UsageError(
            field=str(file),
            problem="no known format of models",
            value=suffix,
            allowed=f"the folder of a run, or a file of {', '.join(FORMATS)}",
        )
    if suffix == ".pt2" and not trusted:
        raise CapabilityError(
            field=str(file),
            problem="torch.export.load unpickles parts of such a file, so a forged one can run any code",
            value=suffix,
            fix="give --trust (Python: trust=True) if you know who made it, or export ONNX, which can't",
        )


def damaged(file: Path, error: Exception | str) -> CheckpointError:
    """Return the error for a file that can't be read."""
    said = " ".join(str(error).split())[:200] or type(error).__name__
    return CheckpointError(
        field=str(file),
        problem=f"the file can't be read as {FORMATS.get(file.suffix.lower(), 'a model')} ({said})",
        fix="it may be damaged or truncated: export it again",
    )


def read_onnx(file: Path) -> Any:
    """Return an ONNX model with all its data, after checking what it would make a runtime do.

    Raises:
        CheckpointError: if it is damaged, or keeps data in files that aren't in its own folder.
        CapabilityError: if it needs operators that aren't ONNX's own.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    try:
        model = onnx.load(str(file), load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise damaged(file, error) from None
    if not model.graph.node or not model.graph.output:
        raise damaged(file, "it holds no graph")
    _check_domains(file, model)
    for tensor in _tensors(model):
        _check_external(file, tensor)
    try:
        onnx.load_external_data_for_model(model, str(file.parent))
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, OSError) as error:
        raise damaged(file, error) from None
    return model


def check_ir(file: Path) -> None:
    """Check an OpenVINO IR, whose weights must be in the ``.bin`` beside it.

    Raises:
        CheckpointError: if it is damaged, or its weights are somewhere else.
        CapabilityError: if it needs operators that aren't OpenVINO's own.
    """
    weights = file.with_suffix(".bin")
    if not weights.is_file():
        raise CheckpointError(
            field=str(weights),
            problem="the weights are missing: they stand beside the .xml, under its name",
            fix=f"copy {weights.name} to the folder of {file.name}",
        )
    _check_beside(file, weights.name, "its weights are")
    try:
        text = file.read_text(encoding="utf-8")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise damaged(file, "it declares entities")
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, UnicodeDecodeError) as error:
        raise damaged(file, error) from None
    if root.tag != "net":
        raise damaged(file, f"it is a <{root.tag}>, not a <net>")
    size = weights.stat().st_size
    for layer in root.iter("layer"):
        version = layer.get("version", "")
        if not _OPSET.fullmatch(version):
            raise _custom(file, f"{version}.{layer.get('type')}", "an extension of OpenVINO")
        for data in layer.findall("data") if layer.get("type") == "Const" else ():
            if int(data.get("offset", 0)) + int(data.get("size", 0)) > size:
                raise damaged(weights, f"it has {size} bytes, and '{layer.get('name')}' lies beyond them")


def _check_domains(file: Path, model: Any) -> None:
    own = {(function.domain, function.name) for function in model.functions}
    for node in _nodes(model):
        if node.domain not in _STANDARD and (node.domain, node.op_type) not in own:
            raise _custom(file, f"{node.domain}.{node.op_type}", "a custom operator")


def _custom(file: Path, name: str, what: str) -> CapabilityError:
    return CapabilityError(
        field=str(file),
        problem=f"the model needs {what}, whose code fmdist doesn't load",
        value=name,
        allowed="operators of the standard alone",
        fix="export the model without it",
    )


def _check_external(file: Path, tensor: Any) -> None:
    """Raise unless a tensor's data is in the model's file, or in one of its folder that is long enough."""
    if tensor.data_location != tensor.EXTERNAL:
        return
    entries = {entry.key: entry.value for entry in tensor.external_data}
    location = entries.get("location", "")
    _check_beside(file, location, f"the data of tensor '{tensor.name}' is")
    data = file.parent / location
    if not data.is_file():
        raise CheckpointError(
            field=str(data), problem=f"the data of tensor '{tensor.name}' is missing", value=location
        )
    try:
        end = int(entries.get("offset", 0)) + int(entries.get("length", 0))
    except ValueError:
        raise damaged(file, f"tensor '{tensor.name}' says no number for where its data lies") from None
    if end > data.stat().st_size or int(entries.get("offset", 0)) < 0 or int(entries.get("length", 0)) < 0:
        raise damaged(
            data, f"it has {data.stat().st_size} bytes, and tensor '{tensor.name}' lies beyond them"
        )


def _check_beside(file: Path, location: str, what: str) -> None:
    path = file.parent / location
    plain = bool(location) and not Path(location).is_absolute() and ".." not in Path(location).parts
    # A folder is often reached by a link; what must not lead elsewhere is a file in it.
    if not plain or not path.resolve().is_relative_to(file.parent.resolve()):
        raise CheckpointError(
            field=str(file),
            problem=f"{what} outside of the model's folder, and such a file is never opened",
            value=location,
            allowed="files of the same folder, named by relative paths without '..', and no links out of it",
        )


def _graphs(graph: Any) -> Iterator[Any]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
                yield from _graphs(inner)


def _nodes(model: Any) -> Iterator[Any]:
    for body in (model.graph, *model.functions):
        for graph in _graphs(body):
            yield from graph.node


def _tensors(model: Any) -> Iterator[Any]:
    for graph in _graphs(model.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in _nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (
                *attribute.sparse_tensors,
                *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
            ):
                yield from (sparse.values, sparse.indices)
