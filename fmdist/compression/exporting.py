"""A torch model exported as a stage: float models for the runtimes, weights, and what rebuilds the module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from fmdist import storage
from fmdist.compression.config import CompressConfig
from fmdist.compression.export import export_models, frozen
from fmdist.compression.importing import import_graph
from fmdist.compression.manifest import describe
from fmdist.compression.original import Hosted
from fmdist.compression.ownership import scratch
from fmdist.compression.passes.base import ExportedPass, TrainedPass
from fmdist.compression.reducing import CHANGES
from fmdist.compression.stage import Done, Stages
from fmdist.compression.subject import Subject
from fmdist.environment import ARTIFACT, versions


def export(subject: Subject, config: CompressConfig, stages: Stages, variant: str) -> Done:
    """Write a torch model for the runtimes, if it isn't done yet.

    Args:
        subject: what is exported: the original, or what passes have left of it.
        config: says for which runtimes, and what follows.
        stages: of the artifact.
        variant: ``fp32`` or ``reduced``.

    Raises:
        CompressionError: if a runtime's exporter can't convert the module.
    """
    spec = subject.export
    # What runs is always openvino/model.xml: other float models make way for what a pass will put there.
    exported = [settings for settings in config.passes if isinstance(settings, ExportedPass | TrainedPass)]
    final = not exported and (variant == "reduced" or not config.passes)
    names = {
        "openvino": f"openvino/{'model' if final else f'model.{variant}'}.xml",
        "onnxruntime": f"onnx/{'model' if variant == 'fp32' else f'model.{variant}'}.onnx",
    }
    stem = "model" if variant == "fp32" else variant
    architecture = "architecture.json" if variant == "fp32" else f"{variant}.architecture.json"
    changes = [stages.output / file for done in stages.done for file in done.files if file.endswith(CHANGES)]
    possible = [runtime for runtime in names if runtime == "openvino" or spec.onnx_route is not None]
    chosen: dict[str, str] = {runtime: names[runtime] for runtime in config.runtimes or possible}
    if isinstance(spec.module, Hosted):
        return import_graph(subject, config, stages, chosen, _signature)

    def work(_: Path) -> tuple[dict[str, Any], list[str]]:
        output = stages.output
        for file in chosen.values():
            (output / file).parent.mkdir(exist_ok=True)
        with scratch(output) as folder:
            export_models(spec, {runtime: output / file for runtime, file in chosen.items()}, folder)
        _write_weights(subject, output / f"{stem}.safetensors", output / architecture, changes)
        models = {runtime: describe(output, file) for runtime, file in chosen.items()}
        weights = describe(output, f"{stem}.safetensors")
        record = {
            "variant": variant,
            "models": models,
            "weights": weights,
            "signature": _signature(subject),
            "parameters": sum(parameter.numel() for parameter in spec.module.parameters()),
        }
        return record, [*files_of(models), f"{stem}.safetensors", architecture]

    inputs = {
        "fingerprint": subject.fingerprint,
        "model": subject.recipe.get("model"),
        "files": chosen,
        "routes": [spec.onnx_route, spec.openvino_route],
        "axes": spec.dynamic_axes,
        "names": [spec.input_names, spec.output_names],
        "versions": versions(ARTIFACT),
    }
    return stages.run("export" if variant == "fp32" else f"export-{variant}", inputs, work)


def files_of(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return all files of a record's models."""
    return [file for described in models.values() for file in described["files"]]


def _write_weights(subject: Subject, file: Path, architecture: Path, changes: Sequence[Path]) -> None:
    """Write weights, and what rebuilds the module that they belong to."""
    state = frozen(subject.export.module).state_dict()
    # Copies, since safetensors refuses tensors that share memory.
    save_file({name: value.clone().contiguous() for name, value in state.items()}, file)
    shapes = {
        name: {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        for name, value in state.items()
    }
    storage.write_json(
        architecture,
        {
            "format": 2,
            "model": subject.recipe.get("model"),
            "spec": subject.splits.spec.to_json(),
            "changes": [change for found in changes for change in storage.read_json(found)["served"]],
            "parameters": shapes,
        },
    )


def _signature(subject: Subject) -> dict[str, Any]:
    spec = subject.export
    example = spec.example()
    outputs = frozen(spec.module)(*example)
    named = (
        ("inputs", spec.input_names, example),
        ("outputs", spec.output_names, outputs if isinstance(outputs, tuple) else (outputs,)),
    )
    return {
        side: [
            {
                "name": name,
                "shape": [
                    None if axis in spec.dynamic_axes.get(name, {}) else size
                    for axis, size in enumerate(value.shape)
                ],
                "dtype": str(value.dtype).removeprefix("torch."),
            }
            for name, value in zip(names, values, strict=True)
        ]
        for side, names, values in named
    }
