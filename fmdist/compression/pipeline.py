"""The stages of a compression, in order.

Export, passes on the torch model, export of what they left, passes on the exported models, verification,
benchmark, manifest.

Each stage is done once, see `fmdist.compression.stage`; a compression that was killed goes on after the last
finished one, and a changed setting repeats only what depends on it.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmdist import component, storage
from fmdist.compression import benchmark, verification
from fmdist.compression.config import CompressConfig
from fmdist.compression.exporting import export, files_of
from fmdist.compression.manifest import Records, assemble, describe
from fmdist.compression.original import Hosted
from fmdist.compression.ownership import check_owner, own, scratch
from fmdist.compression.passes.base import ExportedPass, TorchPass, TrainedPass, Workbench
from fmdist.compression.programs import FILES as PROGRAMS
from fmdist.compression.programs import check_installed, write_programs
from fmdist.compression.reducing import check_budget, reduce, remove_training, training_bench, training_inputs
from fmdist.compression.stage import FOLDER, Done, Stages
from fmdist.compression.subject import (
    Subject,
    batch_of,
    calibration_rows,
    calibration_size,
    score,
    torch_rows,
    write_batch,
)
from fmdist.environment import ARTIFACT, hardware, versions
from fmdist.errors import CheckpointError, UsageError, did_you_mean
from fmdist.reports.card import card
from fmdist.tasks import decoding
from fmdist.training.signals import EndAtOnce

CARD = "README.md"
"""The artifact's model card."""

_MODEL_FOLDERS = {"openvino": "openvino", "onnxruntime": "onnx"}


log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Result:
    """A finished artifact."""

    path: Path
    manifest: dict[str, Any]
    """See `fmdist.compression.manifest` for its keys."""


def compress(
    subject: Subject,
    config: CompressConfig,
    output: Path,
    from_stage: str | None = None,
    record: Mapping[str, Any] | None = None,
) -> Result:
    """Make the artifact ``output`` of a trained model, or finish it.

    Args:
        subject: the trained model with its data.
        config: the recipe's ``compress:`` section.
        output: the artifact's folder: new, empty, or of this very subject; the artifact of an earlier state
            of the subject's run is replaced.
        from_stage: do this stage and all after it again, such as ``quantize`` or ``benchmark``.
        record: of the search that found ``config``, for the manifest.

    Raises:
        UsageError: if there is no such stage.
        CheckpointError: if ``output`` holds something else, or another process is writing there.
        CompressionError: if an export isn't faithful, a pass changed nothing, or the budget was missed.
        CapabilityError: if the model's exports can't be scored.
        DependencyMissing: if the extra ``compress`` is not installed.
        Interrupted: by SIGTERM or SIGINT; finished stages are kept.
    """
    component.require("compress", needed_by="fmdist compress")
    check_installed(config)
    _check_stage(from_stage, subject, config)
    _calibration(subject, config)
    _check_torch_passes(subject, config)
    check_owner(output, subject)
    with EndAtOnce("finished stages are kept; the same command goes on") as ending, storage.lock(output):
        storage.remove_leftovers(output)
        check_owner(output, subject)
        own(output, subject)
        stages = Stages(output, ending.check, from_stage)
        exports, passes = [export(subject, config, stages, "fp32")], []
        _check_exported_passes(config, exports[0], output)
        current, lost = subject, 0.0
        for settings in config.passes:
            if isinstance(settings, TorchPass):
                current, done = reduce(subject, current, settings, stages, config.sensitivity)
                passes.append(done)
        if passes:
            lost = check_budget(subject, current, config)
            exports.append(export(current, config, stages, "reduced"))
        for settings in config.passes:
            if isinstance(settings, ExportedPass | TrainedPass):
                stem = "model" if settings is config.passes[-1] else ""
                passes.append(_apply(subject, current, config, settings, stages, stem, lost))
        programs = [write_programs(current, config, stages)] if config.programs else []
        verified = _verify(subject, current, stages)
        measured = _benchmark(subject, config, stages)
        return _commit(
            subject, config, Records(exports, passes, verified, measured, programs, record), output
        )


def _check_stage(name: str | None, subject: Subject, config: CompressConfig) -> None:
    on_torch = [settings.kind() for settings in config.passes if isinstance(settings, TorchPass)]
    exported = [settings.kind() for settings in config.passes if not isinstance(settings, TorchPass)]
    first = "import" if isinstance(subject.export.module, Hosted) else "export"
    names = [first, *on_torch, *(["export-reduced"] if on_torch else []), *exported]
    names += [*(["programs"] if config.programs else []), "verify", "benchmark"]
    if name is not None and name not in names:
        raise UsageError(
            field="--from-stage",
            problem="this compression has no such stage",
            value=name,
            allowed=", ".join(names),
            fix=did_you_mean(name, names),
        )


def _check_torch_passes(subject: Subject, config: CompressConfig) -> None:
    spec = subject.export
    for settings in config.passes:
        if isinstance(settings, TorchPass):
            settings.check(spec.module, spec.example(), spec.fixed)
            if settings.renames:
                return  # Later ones may name the layers that it makes.
        elif isinstance(settings, TrainedPass):
            settings.check(subject.task, spec.module)


def _check_exported_passes(config: CompressConfig, exported: Done, output: Path) -> None:
    models = {runtime: output / item["file"] for runtime, item in exported.record["models"].items()}
    for settings in config.passes:
        if isinstance(settings, ExportedPass):
            settings.check(models)


def _apply(
    original: Subject,
    subject: Subject,
    config: CompressConfig,
    settings: ExportedPass | TrainedPass,
    stages: Stages,
    stem: str,
    lost: float,
) -> Done:
    """Run one pass on what the stage before it left.

    ``stem``, or else the variant, names OpenVINO's file; ``lost`` is what of the budget is spent.
    """
    before = stages.done[-1]
    models = {runtime: stages.output / item["file"] for runtime, item in before.record["models"].items()}

    def work(own_folder: Path) -> tuple[dict[str, Any], list[str]]:
        with scratch(stages.output) as folder:
            bench = _workbench(subject, config.max_drop - lost, config, models, folder)
            if isinstance(settings, TrainedPass):
                outcome = settings.train(bench, training_bench(original, subject, own_folder))
            else:
                outcome = settings.apply(bench)
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
        return record, files_of(described)

    inputs = {
        "config": settings.to_recipe(),
        "models": before.files,
        "max_drop": config.max_drop - lost,
        "calibration_samples": _calibration(subject, config),
        "seed": subject.seed,
        "stem": stem,
        "float_only": dict(subject.export.float_only),
        "data": subject.splits.record,
        "metric": subject.task.primary,
        "versions": versions(ARTIFACT),
    }
    if isinstance(settings, TrainedPass):
        inputs |= training_inputs(original, subject)
    done = stages.run(settings.kind(), inputs, work)
    remove_training(stages.folder(done.name))
    return done


def _verify(subject: Subject, current: Subject, stages: Stages) -> Done:
    reduced = None if current is subject else current

    def work(_: Path) -> tuple[dict[str, Any], list[str]]:
        with scratch(stages.output) as folder:
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
        with scratch(stages.output) as folder:
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
        "calibration_size": _calibration(subject, config),
        "split_sha256": splits.record.get("sha256"),
    }
    # Through JSON, so that tuples compare equal to the lists that were sealed.
    facts = json.loads(json.dumps(assemble(subject, config.max_drop, records, evaluation), allow_nan=False))
    if (output / storage.MANIFEST).is_file():
        sealed = _sealed(output)
        volatile = {"created", "files"}
        if config.keep_stages and all(sealed.get(key) == facts[key] for key in facts.keys() - volatile):
            return Result(output, sealed)
        (output / storage.MANIFEST).unlink()
    done = records.all
    written = {file for stage in done for file in stage.files}
    for pattern in (*(f"{folder}/*" for folder in _MODEL_FOLDERS.values()), "reduced.*", *PROGRAMS.values()):
        for file in output.glob(pattern):
            if file.relative_to(output).as_posix() not in written:
                file.unlink()
    kept = {stage.name for stage in done} if config.keep_stages else set()
    for stage_folder in (output / FOLDER).iterdir():
        if stage_folder.is_dir() and stage_folder.name not in kept:
            shutil.rmtree(stage_folder)
    # Drawn from the manifest after it, so it can't be among the hashed files.
    (output / "report.html").unlink(missing_ok=True)
    (output / CARD).write_text(card(facts, output.name), encoding="utf-8")
    storage.seal(output, facts)
    return Result(output, storage.verify(output))


def _sealed(output: Path) -> dict[str, Any]:
    """Return the manifest; empty if a file was changed, since everything is here to seal it again."""
    try:
        return storage.verify(output)
    except CheckpointError as error:
        log.warning("%s; the artifact is sealed again", error)
        return {}


def _calibration(subject: Subject, config: CompressConfig) -> int:
    return calibration_size(len(subject.splits.train), config.calibration_samples)


def _workbench(
    subject: Subject, max_drop: float, config: CompressConfig, models: Mapping[str, Path], folder: Path
) -> Workbench:
    splits, task, rule = subject.splits, subject.task, subject.task.decoding()
    targets = splits.validation.targets
    rows = calibration_rows(splits.train.targets, _calibration(subject, config), subject.seed)
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


def _place(draft: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    draft.replace(target)
    if target.suffix == ".xml":
        draft.with_suffix(".bin").replace(target.with_suffix(".bin"))
