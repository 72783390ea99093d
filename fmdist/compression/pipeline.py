"""The stages of a compression, in order: export -> passes -> verify -> benchmark -> manifest.

Each stage is done once, see `fmdist.compression.stage`; a compression that was killed goes on after the last
finished one, and a changed setting repeats only what depends on it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
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
from fmdist.compression.passes.base import PassConfig, Workbench
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
        exported = _export(subject, config, stages)
        passes: list[Done] = []
        for position, settings in enumerate(config.passes):
            last = position == len(config.passes) - 1
            passes.append(_apply(subject, config, settings, stages, "model" if last else ""))
        verified = _verify(subject, stages)
        measured = _benchmark(subject, config, stages)
        return _commit(subject, config, Records(exported, passes, verified, measured), output)


def _export(subject: Subject, config: CompressConfig, stages: Stages) -> Done:
    spec = subject.export
    # What runs is always openvino/model.xml: the float model makes way for what a pass will put there.
    openvino_name = "model.fp32.xml" if config.passes else "model.xml"
    names = {"openvino": f"openvino/{openvino_name}", "onnxruntime": "onnx/model.onnx"}
    possible = [runtime for runtime in names if runtime == "openvino" or spec.onnx_route is not None]
    chosen: dict[str, str] = {runtime: names[runtime] for runtime in config.runtimes or possible}

    def work() -> tuple[dict[str, Any], list[str]]:
        output = stages.output
        for file in chosen.values():
            (output / file).parent.mkdir(exist_ok=True)
        with _scratch(output) as folder:
            export_models(spec, {runtime: output / file for runtime, file in chosen.items()}, folder)
        _write_weights(subject, output)
        models = {runtime: describe(output, file) for runtime, file in chosen.items()}
        weights = describe(output, "model.safetensors")
        record = {
            "variant": "fp32",
            "models": models,
            "weights": weights,
            "signature": _signature(subject),
            "parameters": sum(parameter.numel() for parameter in spec.module.parameters()),
        }
        return record, [*_files(models), "model.safetensors", "architecture.json"]

    inputs = {
        "fingerprint": subject.fingerprint,
        "model": subject.recipe.get("model"),
        "files": chosen,
        "routes": [spec.onnx_route, spec.openvino_route],
        "axes": spec.dynamic_axes,
        "names": [spec.input_names, spec.output_names],
        "versions": versions(ARTIFACT),
    }
    return stages.run("export", inputs, work)


def _apply(subject: Subject, config: CompressConfig, settings: PassConfig, stages: Stages, stem: str) -> Done:
    """Run one pass on what the stage before it left; ``stem``, or else the variant, names OpenVINO's file."""
    before = stages.done[-1]
    models = {runtime: stages.output / item["file"] for runtime, item in before.record["models"].items()}

    def work() -> tuple[dict[str, Any], list[str]]:
        with _scratch(stages.output) as folder:
            outcome = settings.apply(_workbench(subject, config, models, folder))
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
        "max_drop": config.max_drop,
        "calibration_samples": config.calibration_samples,
        "seed": subject.seed,
        "stem": stem,
        "float_only": dict(subject.export.float_only),
        "data": subject.splits.record,
        "metric": subject.task.primary,
        "versions": versions(ARTIFACT),
    }
    return stages.run(settings.kind(), inputs, work)


def _verify(subject: Subject, stages: Stages) -> Done:
    def work() -> tuple[dict[str, Any], list[str]]:
        with _scratch(stages.output) as folder:
            return verification.verify(subject, _ways(stages), folder), []

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
    def work() -> tuple[dict[str, Any], list[str]]:
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
    done = (records.export, *records.passes, records.verify, records.benchmark)
    written = {file for stage in done for file in stage.files}
    for folder in _MODEL_FOLDERS.values():
        for file in (output / folder).glob("*"):
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
    subject: Subject, config: CompressConfig, models: Mapping[str, Path], folder: Path
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
        max_drop=config.max_drop,
        float_only=subject.export.float_only,
    )


def _ways(stages: Stages) -> list[verification.Model]:
    models: dict[str, dict[str, Path]] = {}
    for done in stages.done:
        for runtime, described in done.record.get("models", {}).items():
            models.setdefault(runtime, {})[done.record["variant"]] = stages.output / described["file"]
    return verification.ways(models)


def _write_weights(subject: Subject, output: Path) -> None:
    """Write the original's weights, and what rebuilds the module that they belong to."""
    state = frozen(subject.export.module).state_dict()
    # Copies, since safetensors refuses tensors that share memory.
    save_file(
        {name: value.clone().contiguous() for name, value in state.items()}, output / "model.safetensors"
    )
    shapes = {
        name: {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
        for name, value in state.items()
    }
    storage.write_json(
        output / "architecture.json",
        {"format": 1, "model": subject.recipe.get("model"), "parameters": shapes},
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
