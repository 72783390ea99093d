"""The stages of a compression, in order.

Export, passes on the torch model, export of what they left, passes on the exported models, verification,
benchmark, manifest.

Each stage is done once, see `fmdist.compression.stage`; a compression that was killed goes on after the last
finished one, and a changed setting repeats only what depends on it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save_file

from fmdist import component, storage
from fmdist.compression import benchmark, verification
from fmdist.compression.config import CompressConfig
from fmdist.compression.export import export_models, frozen
from fmdist.compression.manifest import Records, assemble, describe
from fmdist.compression.passes.base import ExportedPass, TorchPass, Workbench
from fmdist.compression.reducing import CHANGES, check_budget, reduce
from fmdist.compression.stage import FOLDER, Done, Stages
from fmdist.compression.subject import (
    Subject,
    batch_of,
    calibration_rows,
    score,
    torch_rows,
    write_batch,
)
from fmdist.environment import ARTIFACT, hardware, versions
from fmdist.errors import CheckpointError
from fmdist.tasks import decoding
from fmdist.training.signals import EndAtOnce

_OWNER = "subject.json"
_MODEL_FOLDERS = {"openvino": "openvino", "onnxruntime": "onnx"}


@dataclass(frozen=True)
class Result:
    """A finished artifact."""

    path: Path
    manifest: dict[str, Any]
    """See `fmdist.compression.manifest` for its keys."""


def compress(subject: Subject, config: CompressConfig, output: Path) -> Result:
    """Make the artifact ``output`` of a trained model, or finish it.

    Args:
        subject: the trained model with its data.
        config: the recipe's ``compress:`` section.
        output: the artifact's folder: new, empty, or of this very subject; the artifact of an earlier state
            of the subject's run is replaced.

    Raises:
        CheckpointError: if ``output`` holds something else, or another process is writing there.
        CompressionError: if an export isn't faithful, a pass changed nothing, or the budget was missed.
        CapabilityError: if the model's exports can't be scored.
        DependencyMissing: if the extra ``compress`` is not installed.
        Interrupted: by SIGTERM or SIGINT; finished stages are kept.
    """
    component.require("compress", needed_by="fmdist compress")
    _check_owner(output, subject)
    with EndAtOnce("finished stages are kept; the same command goes on") as ending, storage.lock(output):
        storage.remove_leftovers(output)
        _check_owner(output, subject)
        _own(output, subject)
        stages = Stages(output, ending.check)
        exports, passes = [_export(subject, config, stages, "fp32")], []
        current, lost = subject, 0.0
        for settings in config.passes:
            if isinstance(settings, TorchPass):
                current, done = reduce(subject, current, settings, stages)
                passes.append(done)
        if passes:
            lost = check_budget(subject, current, config)
            exports.append(_export(current, config, stages, "reduced"))
        for settings in config.passes:
            if isinstance(settings, ExportedPass):
                last = settings is config.passes[-1]
                passes.append(_apply(current, config, settings, stages, "model" if last else "", lost))
        verified = _verify(subject, current, stages)
        measured = _benchmark(subject, config, stages)
        return _commit(subject, config, Records(exports, passes, verified, measured), output)


def _export(subject: Subject, config: CompressConfig, stages: Stages, variant: str) -> Done:
    spec = subject.export
    # What runs is always openvino/model.xml: other float models make way for what a pass will put there.
    exported = [settings for settings in config.passes if isinstance(settings, ExportedPass)]
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

    def work(_: Path) -> tuple[dict[str, Any], list[str]]:
        output = stages.output
        for file in chosen.values():
            (output / file).parent.mkdir(exist_ok=True)
        with _scratch(output) as folder:
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
        return record, [*_files(models), f"{stem}.safetensors", architecture]

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


def _apply(
    subject: Subject,
    config: CompressConfig,
    settings: ExportedPass,
    stages: Stages,
    stem: str,
    lost: float,
) -> Done:
    """Run one pass on what the stage before it left.

    ``stem``, or else the variant, names OpenVINO's file; ``lost`` is what of the budget is spent.
    """
    before = stages.done[-1]
    models = {runtime: stages.output / item["file"] for runtime, item in before.record["models"].items()}

    def work(_: Path) -> tuple[dict[str, Any], list[str]]:
        with _scratch(stages.output) as folder:
            outcome = settings.apply(_workbench(subject, config.max_drop - lost, config, models, folder))
            variant = outcome.variant
            named = {
                "openvino": f"openvino/{stem or f'model.{variant}'}.xml",
                "onnxruntime": f"onnx/model.{variant}.onnx",
            }
            for runtime, draft in outcome.models.items():
                _place(draft, stages.output / named[runtime])
        described = {runtime: describe(stages.output, named[runtime]) for runtime in outcome.models}
        record = {
            "variant": variant,
            "from": before.record["variant"],
            "config": settings.to_recipe(),
            "models": described,
            "candidates": outcome.candidates,
            "coverage": outcome.coverage,
            "skipped": dict(outcome.skipped),
        }
        return record, _files(described)

    inputs = {
        "config": settings.to_recipe(),
        "models": before.files,
        "max_drop": config.max_drop - lost,
        "calibration_samples": config.calibration_samples,
        "seed": subject.seed,
        "stem": stem,
        "float_only": dict(subject.export.float_only),
        "data": subject.splits.record,
        "metric": subject.task.primary,
        "versions": versions(ARTIFACT),
    }
    return stages.run(settings.kind(), inputs, work)


def _verify(subject: Subject, current: Subject, stages: Stages) -> Done:
    reduced = None if current is subject else current

    def work(_: Path) -> tuple[dict[str, Any], list[str]]:
        with _scratch(stages.output) as folder:
            return verification.verify(subject, reduced, _ways(stages), folder), []

    inputs = {
        "models": [done.files for done in stages.done],
        "data": subject.splits.record,
        "probes": subject.export.probes,
        "hardware": hardware(),
        "metric": subject.task.primary,
        "versions": versions(ARTIFACT),
    }
    return stages.run("verify", inputs, work)


def _benchmark(subject: Subject, config: CompressConfig, stages: Stages) -> Done:
    def work(_: Path) -> tuple[dict[str, Any], list[str]]:
        with _scratch(stages.output) as folder:
            return benchmark.measure(subject.export, _ways(stages), config.benchmark, folder), []

    inputs = {
        "models": [done.files for done in stages.done],
        "config": config.benchmark.model_dump(mode="json"),
        # Figures of another machine are no figures of this one.
        "hardware": hardware(),
        "versions": versions(ARTIFACT),
    }
    return stages.run("benchmark", inputs, work)


def _commit(subject: Subject, config: CompressConfig, records: Records, output: Path) -> Result:
    """Remove what no stage wrote, then seal; an artifact that is already sealed so stays as it is."""
    splits = subject.splits
    evaluation = {
        "test_size": len(splits.test),
        "validation_size": len(splits.validation),
        "calibration_size": min(config.calibration_samples, len(splits.train)),
        "split_sha256": splits.record.get("sha256"),
    }
    # Through JSON, so that tuples compare equal to the lists that were sealed.
    facts = json.loads(json.dumps(assemble(subject, config.max_drop, records, evaluation), allow_nan=False))
    if (output / storage.MANIFEST).is_file():
        sealed = storage.verify(output)
        volatile = {"created", "files"}
        if all(sealed.get(key) == facts[key] for key in facts.keys() - volatile):
            return Result(output, sealed)
        (output / storage.MANIFEST).unlink()
    done = records.all
    written = {file for stage in done for file in stage.files}
    for pattern in (*(f"{folder}/*" for folder in _MODEL_FOLDERS.values()), "reduced.*"):
        for file in output.glob(pattern):
            if file.relative_to(output).as_posix() not in written:
                file.unlink()
    for stage_folder in (output / FOLDER).iterdir():
        if stage_folder.is_dir() and stage_folder.name not in {stage.name for stage in done}:
            shutil.rmtree(stage_folder)
    # Drawn from the manifest after it, so it can't be among the hashed files.
    (output / "report.html").unlink(missing_ok=True)
    storage.seal(output, facts)
    return Result(output, storage.verify(output))


def _workbench(
    subject: Subject, max_drop: float, config: CompressConfig, models: Mapping[str, Path], folder: Path
) -> Workbench:
    splits, task, rule = subject.splits, subject.task, subject.task.decoding()
    targets = splits.validation.targets
    rows = calibration_rows(splits.train.targets, config.calibration_samples, subject.seed)
    files = write_batch(splits, splits.validation, folder, "validation")

    def primary(found: NDArray[np.float32], rows: NDArray[np.int64]) -> float:
        return score(task, found, targets[rows])[task.primary[0]]

    return Workbench(
        models=models,
        folder=folder,
        calibration=decoding.feed(rule, batch_of(splits.train.plain(), rows)),
        validation={name: np.load(file, mmap_mode="r") for name, file in files.items()},
        rule=rule,
        reference=torch_rows(task, splits.validation),
        score=primary,
        mode=task.primary[1],
        max_drop=max_drop,
        float_only=subject.export.float_only,
    )


def _ways(stages: Stages) -> list[verification.Model]:
    models: dict[str, dict[str, Path]] = {}
    for done in stages.done:
        for runtime, described in done.record.get("models", {}).items():
            models.setdefault(runtime, {})[done.record["variant"]] = stages.output / described["file"]
    return verification.ways(models)


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


def _files(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    return [file for described in models.values() for file in described["files"]]


def _place(draft: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    draft.replace(target)
    if target.suffix == ".xml":
        draft.with_suffix(".bin").replace(target.with_suffix(".bin"))


def _own(output: Path, subject: Subject) -> None:
    """Write whose artifact this is; from other weights on the folder is no finished artifact."""
    (output / FOLDER).mkdir(exist_ok=True)
    file = output / FOLDER / _OWNER
    if file.exists() and storage.read_json(file) == _owner(subject):
        return
    (output / storage.MANIFEST).unlink(missing_ok=True)
    storage.write_json(file, _owner(subject))


def _owner(subject: Subject) -> dict[str, str]:
    return {"name": subject.name, "run": subject.run, "fingerprint": subject.fingerprint}


def _check_owner(output: Path, subject: Subject) -> None:
    """Raise `CheckpointError` unless ``output`` is new, empty, or an artifact of this subject's run."""
    if output.exists() and not output.is_dir():
        raise CheckpointError(field="-o", problem="a file is in the way of the artifact", value=str(output))
    owner = output / FOLDER / _OWNER
    if owner.is_file():
        found = storage.read_json(owner)
        same_run = subject.run and found.get("run") == subject.run
        if found.get("name") != subject.name or not (
            same_run or found.get("fingerprint") == subject.fingerprint
        ):
            raise CheckpointError(
                field="-o",
                problem=f"the directory holds the artifact of other weights (of '{found.get('name')}')",
                value=str(output),
                fix="remove it, or give another directory with -o",
            )
        return
    if output.is_dir() and any(path.name not in (storage.LOCK, FOLDER) for path in output.iterdir()):
        raise CheckpointError(
            field="-o",
            problem="the directory holds something that isn't an artifact",
            value=str(output),
            fix="give a new directory with -o",
        )


@contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """Yield an empty folder that `fmdist.storage.remove_leftovers` finds if this process is killed."""
    with tempfile.TemporaryDirectory(dir=output, prefix=".scratch-", suffix=".tmp") as folder:
        yield Path(folder)
