"""What a forged or damaged file of a model could make a runtime do, refused before one opens it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from fmdist.compression import vetting
from fmdist.compression.graphs import read_graph
from fmdist.compression.ports import Port, match
from fmdist.contracts import InputSpec
from fmdist.errors import CapabilityError, CheckpointError, UsageError


def model(*nodes: Any, weight: Any = None, opsets: tuple[str, ...] = ("",)) -> Any:
    """Return a model from ``x`` (batch, 4) to ``y`` (batch, 4)."""
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy"]
    weights = [] if weight is None else [weight]
    graph = helper.make_graph(list(nodes), "small", ends[:1], ends[1:], weights)
    imports = [helper.make_opsetid(domain, 18 if not domain else 1) for domain in opsets]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def written(file: Path, value: Any) -> Path:
    file.write_bytes(value.SerializeToString())
    return file


def outside(location: str, offset: str | None = None) -> Any:
    """Return a weight (4,) whose data is said to be in another file."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [4], [0.0] * 4)
    weight.ClearField("float_data")
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value=location)
    if offset is not None:
        weight.external_data.add(key="offset", value=offset)
        weight.external_data.add(key="length", value="16")
    return weight


ADD = helper.make_node("Add", ["x", "w"], ["y"])


def test_a_file_beside_the_model_is_read(tmp_path: Path) -> None:
    (tmp_path / "w.data").write_bytes(b"\0" * 16)
    file = written(tmp_path / "a.onnx", model(ADD, weight=outside("w.data", "0")))
    assert vetting.read_onnx(file).graph.initializer[0].raw_data == b"\0" * 16


@pytest.mark.parametrize(
    ("location", "offset", "problem"),
    [
        ("/etc/passwd", None, "outside of the model's folder"),
        ("../w.data", None, "outside of the model's folder"),
        ("a/../../w.data", None, "outside of the model's folder"),
        ("", None, "outside of the model's folder"),
        ("missing.data", None, "is missing"),
        ("w.data", "8", "lies beyond"),
        ("w.data", "-1", "lies beyond"),
        ("w.data", "x", "says no number"),
    ],
)
def test_other_places_are_refused(tmp_path: Path, location: str, offset: str | None, problem: str) -> None:
    (tmp_path / "w.data").write_bytes(b"\0" * 16)
    file = written(tmp_path / "a.onnx", model(ADD, weight=outside(location, offset)))
    with pytest.raises(CheckpointError, match=problem):
        vetting.read_onnx(file)


def test_data_of_constants_and_of_inner_graphs_is_looked_at(tmp_path: Path) -> None:
    constant = helper.make_node("Constant", [], ["w"], value=outside("/etc/passwd"))
    inner = helper.make_graph(
        [constant, helper.make_node("Add", ["x", "w"], ["z"])],
        "inner",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    choice = helper.make_node("If", ["w0"], ["y"], then_branch=inner, else_branch=inner)
    yes = helper.make_tensor("w0", TensorProto.BOOL, [], [True])
    for value in (model(constant, ADD), model(choice, weight=yes)):
        with pytest.raises(CheckpointError, match="outside of the model's folder"):
            vetting.read_onnx(written(tmp_path / "a.onnx", value))


def test_operators_of_others_are_refused(tmp_path: Path) -> None:
    node = helper.make_node("Run", ["x"], ["y"], domain="evil.example")
    file = written(tmp_path / "a.onnx", model(node, opsets=("", "evil.example")))
    with pytest.raises(CapabilityError, match=r"custom operator.*evil\.example\.Run"):
        vetting.read_onnx(file)


def test_a_quantized_model_is_refused(tmp_path: Path) -> None:
    scale = helper.make_tensor("w", TensorProto.FLOAT, [], [0.1])
    nodes = (
        helper.make_node("QuantizeLinear", ["x", "w"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "w"], ["y"]),
    )
    with pytest.raises(CapabilityError, match="rounded to integers already"):
        read_graph(written(tmp_path / "a.onnx", model(*nodes, weight=scale)))


def ir(folder: Path, layers: str, head: str = "", size: int = 16) -> Path:
    (folder / "a.bin").write_bytes(b"\0" * size)
    file = folder / "a.xml"
    file.write_text(f"<?xml version='1.0'?>{head}<net name='a' version='11'><layers>{layers}</layers></net>")
    return file


def test_the_weights_of_an_ir_are_those_beside_it(tmp_path: Path) -> None:
    file = ir(tmp_path, "")
    (tmp_path / "a.bin").unlink()
    with pytest.raises(CheckpointError, match="weights are missing"):
        vetting.check_ir(file)
    (tmp_path / "a.bin").symlink_to("/etc/passwd")
    with pytest.raises(CheckpointError, match="outside of the model's folder"):
        vetting.check_ir(file)


def test_extensions_entities_and_data_beyond_the_end_are_refused_in_an_ir(tmp_path: Path) -> None:
    layer = "<layer id='0' name='n' type='{}' version='{}'><data offset='8' size='{}'/></layer>"
    vetting.check_ir(ir(tmp_path, layer.format("Const", "opset1", 8)))
    with pytest.raises(CheckpointError, match="'n' lies beyond"):
        vetting.check_ir(ir(tmp_path, layer.format("Const", "opset1", 9)))
    with pytest.raises(CapabilityError, match=r"extension of OpenVINO.*extension\.Mine"):
        vetting.check_ir(ir(tmp_path, layer.format("Mine", "extension", 8)))
    with pytest.raises(CheckpointError, match="declares entities"):
        vetting.check_ir(ir(tmp_path, "", head="<!DOCTYPE net [<!ENTITY a 'b'>]>"))


def test_formats_are_told_by_their_names(tmp_path: Path) -> None:
    for name in ("a.onnx", "a.pt", "a.pt2", "a.h5"):
        (tmp_path / name).touch()
    vetting.check_format(tmp_path / "a.onnx", trusted=False)
    vetting.check_format(tmp_path / "a.pt2", trusted=True)
    with pytest.raises(CapabilityError, match="--trust"):
        vetting.check_format(tmp_path / "a.pt2", trusted=False)
    with pytest.raises(CapabilityError, match="save_file"):
        vetting.check_format(tmp_path / "a.pt", trusted=True)
    with pytest.raises(UsageError, match="no known format"):
        vetting.check_format(tmp_path / "a.h5", trusted=True)
    with pytest.raises(UsageError, match="no such file"):
        vetting.check_format(tmp_path / "b.onnx", trusted=True)


IMAGE, ID = InputSpec("image", (1, 8, 8)), InputSpec("id", (), "int64", 5)
A, B = Port("image", "float32", (3, 1, 8, 8)), Port("id", "int64", (3,))
LOGITS = Port("logits", "float32", (3, 10))
FILE = Path("a.onnx")


def test_inputs_are_matched_by_name_else_by_order() -> None:
    found = match(FILE, [B, A], [LOGITS], (IMAGE, ID), 10)
    assert (found.inputs, found.output, found.batch) == ((A, B), LOGITS, 3)
    free = Port("x", "float32", (None, None, 8, 8))
    found = match(FILE, [free], [Port("ids", "int64", (None,)), LOGITS], (IMAGE,), 10)
    assert (found.inputs, found.output, found.batch) == ((free,), LOGITS, None)


@pytest.mark.parametrize(
    ("inputs", "outputs", "problem"),
    [
        ([A], [LOGITS], "1 inputs and the task gives 2"),
        ([B, Port("x", "float32", (3, 1, 8, 8))], [LOGITS], r"input 'id'.*as 'image'.*int64 \(3\)"),
        ([A, Port("id", "int32", (3,))], [LOGITS], r"int32 \(3\).*int64 \(any\)"),
        ([A, Port("id", "int64", (4,))], [LOGITS], "different fixed sizes"),
        ([A, B], [Port("y", "float32", (3, 9))], r"float32 \(3, 9\).*float32 \(any, 10\)"),
        ([A, B], [Port("y", "float16", (3, 10))], "float16"),
        ([A, B], [Port("y", "float32", (3, 10, 1))], "isn't what the task scores"),
    ],
)
def test_what_does_not_match_is_named(inputs: list[Port], outputs: list[Port], problem: str) -> None:
    with pytest.raises(CapabilityError, match=problem):
        match(FILE, inputs, outputs, (IMAGE, ID), 10)


def test_a_fixed_length_is_no_length_for_rows_of_all_lengths() -> None:
    tokens = InputSpec("text", (None,), "int64", 50, 20)
    with pytest.raises(CapabilityError, match=r"rows have different lengths.*axis free"):
        match(FILE, [Port("text", "int64", (None, 16))], [LOGITS], (tokens,), 10)


def test_a_renamed_graph_keeps_its_inner_names_apart(tmp_path: Path) -> None:
    nodes = (
        helper.make_node("Relu", ["x"], ["image"]),
        helper.make_node("Neg", ["image"], ["output"]),
        helper.make_node("Abs", ["output"], ["y"]),
    )
    graph = read_graph(written(tmp_path / "a.onnx", model(*nodes)))
    matched = match(FILE, graph.inputs, graph.outputs, (InputSpec("image", (4,)),), 4)
    saved = onnx.load(graph.save(matched, ("image",), tmp_path))
    onnx.checker.check_model(saved, full_check=True)
    assert [value.name for value in (*saved.graph.input, *saved.graph.output)] == ["image", "output"]
    names = [*saved.graph.node[0].input, *(node.output[0] for node in saved.graph.node)]
    assert names == ["image", "image_inner", "output_inner", "output"]
