"""A pass on the torch model as a stage: what it leaves is a smaller model of the same task."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file
from torch import nn

from fmdist import storage
from fmdist.compression import latency, reshape
from fmdist.compression.config import CompressConfig
from fmdist.compression.finetune import finetune, train_to_end
from fmdist.compression.passes.base import BUDGET_SLACK, Reduced, TorchBench, TorchPass, TrainingBench
from fmdist.compression.sensitivity import FILE, Model, recorded
from fmdist.compression.sensitivity_config import SensitivityConfig
from fmdist.compression.stage import Done, Stages
from fmdist.compression.subject import Subject, drop, score, torch_rows
from fmdist.contracts import Task
from fmdist.environment import TRAINING, hardware, versions
from fmdist.errors import CompressionError
from fmdist.training.checkpoint import weights_digest

SPARSE = 30
"""From this `order` of a pass on, zeros are what it has made, and training keeps them."""

_ADAMS_LR = 1e-3
_TRAINED_ON = 0.1

CHANGES = "changes.json"
"""A stage's file, what `fmdist.compression.reshape.apply` takes: ``served`` changes what is exported,
``roles`` each role."""


def reduce(
    original: Subject,
    before: Subject,
    settings: TorchPass,
    stages: Stages,
    sensitivity: SensitivityConfig | None = None,
) -> tuple[Subject, Done]:
    """Do a torch pass, if it isn't done yet, and return what is compressed from here on.

    Args:
        original: the uncompressed model.
        before: what the passes so far have left of it.
        settings: the pass.
        stages: of the artifact.
        sensitivity: how layers are measured, if the pass asks for it; None: by the defaults.

    Raises:
        CompressionError: if the pass changed nothing, or the model no longer runs.
        CapabilityError: if it can't be done to this model.
    """
    analysis = sensitivity or SensitivityConfig()

    def work(folder: Path) -> tuple[dict[str, Any], list[str]]:
        task = copy.deepcopy(before.task)
        outcome, changes = _reduced(original, _Before(before, task, folder, analysis), settings)
        files = [folder / CHANGES]
        storage.write_json(files[0], changes)
        for role, module in task.roles().items():
            # Whatever else the roles share, what is trained on must be restored too.
            files.append(folder / f"{role}.safetensors")
            _save(module, files[-1])
        record = {
            "variant": "reduced",
            "config": settings.to_recipe(),
            "coverage": {"torch": outcome.coverage},
            "candidates": outcome.candidates,
            "skipped": {},
            "models": {},
            "before": _facts(before.task),
            "after": _facts(task),
        }
        return record, [file.relative_to(stages.output).as_posix() for file in files]

    inputs = _inputs(original, before, settings, analysis)
    done = stages.run(settings.kind(), inputs, work)
    folder = stages.folder(done.name)
    remove_training(folder)
    return _restored(before, folder), done


def training_inputs(original: Subject, before: Subject) -> dict[str, Any]:
    """Return what decides the outcome of training on, beside the data and the seed."""
    return {
        "fingerprint": before.fingerprint,
        "original": original.fingerprint,
        "train": original.recipe.get("train"),
    }


def remove_training(folder: Path) -> None:
    """Remove a finished stage's checkpoints: what they were needed for is done."""
    for training in (path for path in folder.iterdir() if path.is_dir()):
        shutil.rmtree(training)


def check_budget(original: Subject, reduced: Subject, config: CompressConfig) -> float:
    """Return what the torch passes cost of the metric on the validation split, by the task's own measure.

    Raises:
        CompressionError: if that is more than the budget.
    """
    before, after = (_value(subject.task, original) for subject in (original, reduced))
    lost = drop(original.task, before, after)
    if lost > config.max_drop + BUDGET_SLACK:
        raise CompressionError(
            field="compress.max_drop",
            problem="the passes on the torch model lose more of the metric than allowed",
            value=round(lost, 6),
            allowed=f"at most {config.max_drop}",
            fix="remove less, train on for more epochs (finetune.epochs), or allow a larger drop",
        )
    return lost


def _inputs(
    original: Subject, before: Subject, settings: TorchPass, analysis: SensitivityConfig
) -> dict[str, Any]:
    """Return what decides a pass's outcome."""
    inputs = {
        "config": settings.to_recipe(),
        "fingerprint": before.fingerprint,
        "original": original.fingerprint,
        "train": original.recipe.get("train"),
        "data": original.splits.record,
        "seed": original.seed,
        "versions": versions((*TRAINING, "torch-pruning")),
    }
    if getattr(settings, "allocate", None) is not None:
        inputs["sensitivity"] = analysis.model_dump(mode="json")
    if getattr(settings, "latency", None) is not None:
        # A ratio found by another machine's figures is no answer on this one.
        inputs |= {"hardware": hardware(), "runtime": versions(("openvino",))}
    return inputs


@dataclass(frozen=True)
class _Before:
    """What a pass is given, and where it may keep what it needs to go on."""

    subject: Subject
    task: Task
    """A copy of the subject's, to be changed."""
    folder: Path
    sensitivity: SensitivityConfig


def _reduced(original: Subject, given: _Before, settings: TorchPass) -> tuple[Reduced, dict[str, Any]]:
    before, task = given.subject, given.task
    roles, served = task.roles(), task.served(task.roles())
    whole = reshape.layout(served)
    layouts = {role: reshape.layout(module) for role, module in roles.items()}
    digest = weights_digest(served)
    bench = _bench(original, given, settings)
    outcome = settings.reduce(bench)
    if not outcome.coverage["changed_parameters"] or weights_digest(served) == digest:
        raise CompressionError(
            field=f"compress.passes.{settings.kind()}",
            problem="the pass changed nothing",
            fix="ask for more of it, or leave it out; these layers were left: "
            + ", ".join(f"{left['name']} ({left['reason']})" for left in outcome.coverage["left"]),
        )
    _check_same(before, served)
    return outcome, {
        "served": [*outcome.replaced, *reshape.resized(whole, reshape.layout(served))],
        "roles": {
            role: [
                *_in_role(outcome.replaced, served, module),
                *reshape.resized(layouts[role], reshape.layout(module)),
            ]
            for role, module in roles.items()
        },
    }


def _bench(original: Subject, given: _Before, settings: TorchPass) -> TorchBench:
    before, task, folder = given.subject, given.task, given.folder
    served = task.served(task.roles())
    keeps_zeros = _has_zeros(served)

    def train(config: Any, name: str) -> None:
        zeros = keeps_zeros or settings.order >= SPARSE
        finetune(task, original.task, original.splits, config, original.recipe, folder / name, zeros)

    example = before.export.example()
    measured = Model(task, example, original.splits, original.seed)
    return TorchBench(
        task=task,
        served=served,
        example=example,
        splits=original.splits,
        seed=original.seed,
        fixed=before.export.fixed,
        finetune=train,
        train=lambda task, changed: train_to_end(
            task, original.splits, changed, original.recipe, folder / "train"
        ),
        lr=_adams_lr(original.recipe.get("train") or {}),
        value=partial(_value, task, original),
        sensitivity=partial(recorded, measured, given.sensitivity, folder / FILE),
        latency=partial(latency.against, original.export, before.export, folder),
        folder=folder,
    )


def _adams_lr(train: Mapping[str, Any]) -> float:
    adam = "Adam" in train.get("optimizer", "AdamW")
    return float(train.get("lr", _ADAMS_LR)) if adam else _ADAMS_LR


def training_bench(original: Subject, before: Subject, folder: Path) -> TrainingBench:
    """Return what a trained pass works with: a copy of what the passes so far have left.

    Args:
        original: the uncompressed model.
        before: what is trained on.
        folder: of the stage, where checkpoints go.
    """
    task = copy.deepcopy(before.task)
    served = task.served(task.roles())
    keeps_zeros = _has_zeros(served)
    # An average over steps would change what a quantizer counts in whole numbers, such as its bits.
    plain = {**(original.recipe.get("train") or {}), "precision": "fp32", "ema": None, "warmup_epochs": 0}
    # What is trained already is near its goal: at the full rate it would leave it first.
    plain["lr"] = _TRAINED_ON * float(plain.get("lr", _ADAMS_LR))
    recipe = {**original.recipe, "train": plain}

    def train(config: Any, name: str) -> None:
        finetune(bench.task, original.task, original.splits, config, recipe, folder / name, keeps_zeros)

    bench = TrainingBench(
        task=task,
        served=served,
        example=before.export.example(),
        finetune=train,
        value=lambda: _value(bench.task, original),
        export=replace(before.export, module=served),
    )
    return bench


def _has_zeros(module: nn.Module) -> bool:
    return any(bool((value == 0).any()) for value in module.parameters() if value.ndim >= 2)


def _in_role(
    replaced: Sequence[reshape.Change], served: nn.Module, module: nn.Module
) -> list[reshape.Change]:
    """Return the replaced layers by their names in a role, which may be a part of what is served."""
    names = {id(part): name for name, part in module.named_modules()}
    found: list[reshape.Change] = []
    for change in replaced:
        part = served.get_submodule(change["module"])
        if id(part) in names:
            found.append({**change, "module": names[id(part)]})
    return found


def _check_same(before: Subject, served: nn.Module) -> None:
    """Raise unless the model still answers in the same shape, at two batch sizes."""
    for probe in before.export.probes:
        inputs = before.export.example_inputs(*probe)
        expected = tuple(before.export.module(*inputs).shape)
        try:
            found: Any = tuple(served(*inputs).shape)
        except (RuntimeError, ValueError, IndexError) as error:
            found = " ".join(str(error).split())[:200]
        if found != expected:
            raise CompressionError(
                field="compress.passes",
                problem="the model no longer runs as it did",
                value=found,
                allowed=str(expected),
                fix="name the layers that must keep their size in ignore",
            )


def _restored(before: Subject, folder: Path) -> Subject:
    task = copy.deepcopy(before.task)
    changes: Mapping[str, Any] = storage.read_json(folder / CHANGES)
    for role, module in task.roles().items():
        reshape.apply(module, changes["roles"][role])
        module.load_state_dict(load_file(folder / f"{role}.safetensors"))
        module.eval()
    served = task.served(task.roles())
    return replace(
        before,
        task=task,
        export=replace(before.export, module=served),
        fingerprint=weights_digest(served),
    )


def _save(module: nn.Module, file: Path) -> None:
    # Copies, since safetensors refuses tensors that share memory.
    save_file({name: value.clone().contiguous() for name, value in module.state_dict().items()}, file)


def _value(task: Task, original: Subject) -> float:
    split = original.splits.validation
    return score(task, torch_rows(task, split), split.targets)[task.primary[0]]


def _facts(task: Task) -> dict[str, int]:
    served = task.served(task.roles())
    return {
        "parameters": sum(value.numel() for value in served.parameters()),
        "nonzero": sum(int(np.count_nonzero(value.detach().numpy())) for value in served.parameters()),
    }
