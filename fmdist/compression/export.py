"""Export a trained module to OpenVINO IR and ONNX, in float32.

``python -m fmdist.compression.export JOB.json`` does it in a process of its own: the exporters keep state
between calls that freezes the time axis of recurrent networks. Modules without a free axis beside the batch
are exported in this process, which saves seconds. Verification compares every export with torch at two batch
sizes and two lengths.
"""

from __future__ import annotations

import copy
import inspect
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from inspect import Parameter
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fmdist import storage
from fmdist.compression.child import load_module, plugin_kinds, run_child, save_module
from fmdist.compression.openvino_files import save_openvino
from fmdist.contracts import ExportSpec
from fmdist.deployment.runtime import load_openvino
from fmdist.errors import CompressionError


def frozen(module: nn.Module) -> nn.Module:
    """Return a copy on the CPU in evaluation mode that needs no gradients."""
    return copy.deepcopy(module).cpu().eval().requires_grad_(False)


def export_models(spec: ExportSpec, files: Mapping[str, Path], folder: Path) -> None:
    """Write a model for every runtime of ``files``, float32, with named inputs and free axes.

    Args:
        spec: what to export.
        files: runtime -> where its model goes; OpenVINO's weights go beside it.
        folder: an empty folder for the files of a process of its own.

    Raises:
        CompressionError: if a runtime's exporter can't convert the module.
    """
    if not any(axis for free in spec.dynamic_axes.values() for axis in free):
        for runtime, file in files.items():
            EXPORTERS[runtime](spec, file)
        return
    save_module(frozen(spec.module), folder / "module.pt", lambda: export_program(spec))
    torch.save(spec.example(), folder / "example.pt")
    for runtime, file in files.items():
        job = {
            "runtime": runtime,
            "file": str(file),
            "plugins": plugin_kinds(),
            "folder": str(folder),
            "input_names": spec.input_names,
            "output_names": spec.output_names,
            "dynamic_axes": {name: list(free.items()) for name, free in spec.dynamic_axes.items()},
            "onnx_route": spec.onnx_route,
            "openvino_route": spec.openvino_route,
        }
        run_child("fmdist.compression.export", job, folder)
        if (said := folder / "refused.json").exists():
            raise refused(runtime, storage.read_json(said)["reason"])


def main(job_file: Path) -> None:
    """Export what the job names; a refusal is written to ``refused.json``."""
    job = storage.read_json(job_file)
    folder = Path(job["folder"])
    example = torch.load(folder / "example.pt")
    spec = ExportSpec(
        module=load_module(folder / "module.pt", job["plugins"]),
        example_inputs=lambda batch, length: example,
        input_names=tuple(job["input_names"]),
        output_names=tuple(job["output_names"]),
        dynamic_axes={name: dict(free) for name, free in job["dynamic_axes"].items()},
        onnx_route=job["onnx_route"],
        openvino_route=job["openvino_route"],
    )
    try:
        EXPORTERS[job["runtime"]](spec, Path(job["file"]))
    except CompressionError as error:
        storage.write_json(folder / "refused.json", {"reason": error.problems[0].problem})


def export_program(spec: ExportSpec) -> torch.export.ExportedProgram:
    """Return the module as a program of `torch.export`, with free axes.

    Raises:
        CompressionError: if torch can't export it.
    """
    with exporting("torch"):
        return torch.export.export(frozen(spec.module), spec.example(), dynamic_shapes=dynamic_shapes(spec))


def export_openvino(spec: ExportSpec, file: Path) -> None:
    """Write ``file`` (.xml) and its weights (.bin beside it), float32, with named inputs and free axes.

    Raises:
        CompressionError: if OpenVINO can't convert the module.
    """
    openvino = load_openvino()
    module = frozen(spec.module)
    example = spec.example()
    with exporting("openvino"):
        if spec.openvino_route == "trace":
            model = openvino.convert_model(module, example_input=example)
        else:
            program = torch.export.export(module, example, dynamic_shapes=dynamic_shapes(spec))
            model = openvino.convert_model(program)
        shapes = {}
        for port, name, value in zip(model.inputs, spec.input_names, example, strict=True):
            port.get_tensor().set_names({name})
            free = spec.dynamic_axes.get(name, {})
            shapes[port] = openvino.PartialShape(
                [-1 if axis in free else size for axis, size in enumerate(value.shape)]
            )
        for port, name in zip(model.outputs, spec.output_names, strict=True):
            port.get_tensor().set_names({name})
        model.reshape(shapes)
        save_openvino(model, file)


def export_onnx(spec: ExportSpec, file: Path) -> None:
    """Write one ONNX file, float32, with named inputs and free axes.

    Raises:
        CompressionError: if torch can't export the module.
    """
    module = frozen(spec.module)
    example = spec.example()
    names: dict[str, Any] = {
        "input_names": list(spec.input_names),
        "output_names": list(spec.output_names),
        "verbose": False,
    }
    with exporting("onnxruntime"):
        if spec.onnx_route == "dynamo":
            shapes = dynamic_shapes(spec)
            torch.onnx.export(
                module, example, str(file), dynamo=True, dynamic_shapes=shapes, external_data=False, **names
            )
        else:
            axes = {name: dict(free) for name, free in spec.dynamic_axes.items()}
            torch.onnx.export(module, example, str(file), dynamo=False, dynamic_axes=axes, **names)


def dynamic_shapes(spec: ExportSpec) -> tuple[Any, ...]:
    """Return the free axes as `torch.export` wants them: shaped like the parameters of ``forward``."""
    # One Dim object per name: axes that share a name must stay equal.
    dims = {name: torch.export.Dim(name) for free in spec.dynamic_axes.values() for name in free.values()}
    shapes = tuple(
        {axis: dims[dim] for axis, dim in spec.dynamic_axes.get(name, {}).items()}
        for name in spec.input_names
    )
    kinds = [parameter.kind for parameter in inspect.signature(spec.module.forward).parameters.values()]
    if Parameter.VAR_POSITIONAL in kinds:
        fixed = kinds.index(Parameter.VAR_POSITIONAL)
        return (*shapes[:fixed], shapes[fixed:])
    return shapes


@contextmanager
def exporting(target: str) -> Iterator[None]:
    """Keep the exporters' warnings about their own internals to ourselves; name the target of a failure."""
    level = logging.root.level
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except Exception as error:
            # The exporters wrap the reason in advice on how to report it.
            cause = error.__cause__ or error
            said = (str(cause).strip().splitlines() or [""])[0]
            reason = f"the model can't be exported ({type(cause).__name__}: {said})"
            raise refused(target, reason) from error
        finally:
            # OpenVINO's converter leaves the root logger at ERROR, for everybody.
            logging.root.setLevel(level)


def refused(runtime: str, reason: str) -> CompressionError:
    """Return the error of a module that can't be exported."""
    return CompressionError(
        field=f"compress.export.{runtime}",
        problem=reason,
        fix="see the model kind's export routes, or leave it out of compress.runtimes (or .programs)",
    )


EXPORTERS: dict[str, Callable[[ExportSpec, Path], None]] = {
    "openvino": export_openvino,
    "onnxruntime": export_onnx,
}
"""Runtime -> what writes its model."""


if __name__ == "__main__":
    main(Path(sys.argv[1]))
