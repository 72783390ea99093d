"""Programs of torch's own: a `torch.export` program, and one for ExecuTorch, in float32.

``python -m fmdist.compression.programs JOB.json`` writes one of them in a process of its own, as the other
exports are; a second process loads it without any model's code and runs it, and what it answers is compared
with the module.

ExecuTorch plans all memory ahead, so its program takes one sample; what XNNPACK has kernels for runs there.
Sources: docs.pytorch.org/docs/stable/export.html, docs.pytorch.org/executorch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fmdist import component, storage
from fmdist.compression.child import load_module, plugin_kinds, run_child, save_module
from fmdist.compression.config import CompressConfig
from fmdist.compression.export import dynamic_shapes, exporting, frozen, refused
from fmdist.compression.manifest import describe
from fmdist.compression.ownership import scratch
from fmdist.compression.stage import Done, Stages
from fmdist.compression.subject import Subject
from fmdist.compression.verification import TOLERANCE
from fmdist.contracts import ExportSpec
from fmdist.environment import ARTIFACT, versions
from fmdist.errors import CompressionError

FILES = {"torch_export": "program.pt2", "executorch": "program.pte"}
"""Kind of program -> its file in the artifact."""

PACKAGES = {"torch_export": (), "executorch": ("executorch",)}

Inputs = tuple[torch.Tensor, ...]


def write_programs(subject: Subject, config: CompressConfig, stages: Stages) -> Done:
    """Write the programs that the recipe asks for, if it isn't done yet, and run them.

    Args:
        subject: what passes have left of the original.
        config: names them.
        stages: of the artifact.

    Raises:
        CompressionError: if the module can't be exported, or its program answers otherwise.
    """
    spec = subject.export

    def work(_: Path) -> tuple[dict[str, Any], list[str]]:
        found = {}
        with scratch(stages.output) as folder:
            save_module(frozen(spec.module), folder / "module.pt")
            for kind in config.programs:
                found[kind] = _write(spec, kind, stages.output, folder)
        return {"programs": found, "models": {}}, [FILES[kind] for kind in config.programs]

    packages = [package for kind in config.programs for package in PACKAGES[kind]]
    inputs = {
        "fingerprint": subject.fingerprint,
        "model": subject.recipe.get("model"),
        "programs": config.programs,
        "probes": spec.probes,
        "axes": spec.dynamic_axes,
        "versions": versions((*ARTIFACT, *packages)),
    }
    return stages.run("programs", inputs, work)


def check_installed(config: CompressConfig) -> None:
    """Raise `DependencyMissing` unless what writes the programs is installed."""
    for kind in config.programs:
        for extra in PACKAGES[kind]:
            component.require(extra, needed_by=f"compress.programs '{kind}'")


def _write(spec: ExportSpec, kind: str, output: Path, folder: Path) -> dict[str, Any]:
    file = output / FILES[kind]
    probes = [(1, length) for _, length in spec.probes[:1]] if kind == "executorch" else list(spec.probes)
    inputs = [spec.example_inputs(*probe) for probe in probes]
    torch.save(inputs, folder / "inputs.pt")
    job = {
        "do": "write",
        "kind": kind,
        "file": str(file),
        "folder": str(folder),
        "plugins": plugin_kinds(),
        "input_names": spec.input_names,
        "dynamic_axes": {name: list(free.items()) for name, free in spec.dynamic_axes.items()},
    }
    run_child("fmdist.compression.programs", job, folder)
    if (said := folder / "refused.json").exists():
        raise refused(kind, storage.read_json(said)["reason"])
    run_child("fmdist.compression.programs", {**job, "do": "run"}, folder)
    if imported := storage.read_json(folder / "imported.json"):
        raise CompressionError(
            field=f"compress.programs.{kind}",
            problem="running the program loaded modules that it must not need",
            value=imported,
        )
    module = frozen(spec.module)
    differences = []
    for number, given in enumerate(inputs):
        with torch.no_grad():
            expected = module(*given).numpy()
        differences.append(_difference(kind, np.load(folder / f"answer{number}.npy"), expected))
    description = describe(output, FILES[kind])
    return {**description, "batch": 1 if kind == "executorch" else None, "difference": max(differences)}


def _difference(kind: str, found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    scale = float(np.abs(expected).max()) or 1.0
    difference = float(np.abs(found - expected).max()) / scale if found.shape == expected.shape else np.inf
    # Written so that a difference of nan fails.
    if not difference <= TOLERANCE:
        raise CompressionError(
            field=f"compress.programs.{kind}",
            problem="the program answers otherwise than the module",
            value=difference,
            allowed=f"at most {TOLERANCE} of the largest output",
            fix="the export isn't faithful; leave this program out",
        )
    return difference


def main(job_file: Path) -> None:
    """Write or run what the job names; a refusal is written to ``refused.json``."""
    job = storage.read_json(job_file)
    folder = Path(job["folder"])
    inputs: list[Inputs] = torch.load(folder / "inputs.pt")
    if job["do"] == "run":
        run = RUNNERS[job["kind"]](Path(job["file"]))
        for number, given in enumerate(inputs):
            np.save(folder / f"answer{number}.npy", run(given).detach().numpy())
        code = [name for name in sys.modules if name.startswith(("fmdist.models.", "fmdist_plugins."))]
        storage.write_json(folder / "imported.json", code)
        return
    spec = ExportSpec(
        module=load_module(folder / "module.pt", job["plugins"]),
        example_inputs=lambda batch, length: inputs[0],
        input_names=tuple(job["input_names"]),
        dynamic_axes={name: dict(free) for name, free in job["dynamic_axes"].items()},
    )
    try:
        with exporting(job["kind"]):
            WRITERS[job["kind"]](spec, Path(job["file"]))
    except CompressionError as error:
        storage.write_json(folder / "refused.json", {"reason": error.problems[0].problem})


def _write_torch_export(spec: ExportSpec, file: Path) -> None:
    program = torch.export.export(spec.module, spec.example(), dynamic_shapes=dynamic_shapes(spec))
    torch.export.save(program, file)


def _write_executorch(spec: ExportSpec, file: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(spec.module, spec.example())
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()]).to_executorch()
    with file.open("wb") as target:
        lowered.write_to_file(target)


def _run_torch_export(file: Path) -> Callable[[Inputs], torch.Tensor]:
    module = torch.export.load(file).module()
    return lambda inputs: module(*inputs)


def _run_executorch(file: Path) -> Callable[[Inputs], torch.Tensor]:
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(str(file)).load_method("forward")
    return lambda inputs: method.execute(inputs)[0]


WRITERS: Mapping[str, Callable[[ExportSpec, Path], None]] = {
    "torch_export": _write_torch_export,
    "executorch": _write_executorch,
}
RUNNERS: Mapping[str, Callable[[Path], Callable[[Inputs], torch.Tensor]]] = {
    "torch_export": _run_torch_export,
    "executorch": _run_executorch,
}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
