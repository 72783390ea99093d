"""A pass on the torch model as a stage: what it leaves is a smaller model of the same task."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file, save_file
from torch import nn

from fmdist import storage
from fmdist.compression import reshape
from fmdist.compression.config import CompressConfig
from fmdist.compression.finetune import finetune
from fmdist.compression.passes.base import BUDGET_SLACK, Reduced, TorchBench, TorchPass
from fmdist.compression.stage import Done, Stages
from fmdist.compression.subject import Subject, drop, score, torch_rows
from fmdist.contracts import Task
from fmdist.environment import TRAINING, versions
from fmdist.errors import CompressionError
from fmdist.training.checkpoint import weights_digest

SPARSE = 30
"""From this `order` of a pass on, zeros are what it has made, and training keeps them."""

CHANGES = "changes.json"
"""A stage's file, what `fmdist.compression.reshape.apply` takes: ``served`` changes what is exported,
``roles`` each role."""


def reduce(original: Subject, before: Subject, settings: TorchPass, stages: Stages) -> tuple[Subject, Done]:
    """Do a torch pass, if it isn't done yet, and return what is compressed from here on.

    Args:
        original: the uncompressed model.
        before: what the passes so far have left of it.
        settings: the pass.
        stages: of the artifact.

    Raises:
        CompressionError: if the pass changed nothing, or the model no longer runs.
        CapabilityError: if it can't be done to this model.
    """

    def work(folder: Path) -> tuple[dict[str, Any], list[str]]:
        task = copy.deepcopy(before.task)
        outcome, changes = _reduced(original, before, task, settings, folder)
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

    inputs = {
        "config": settings.to_recipe(),
        "fingerprint": before.fingerprint,
        "original": original.fingerprint,
        "train": original.recipe.get("train"),
        "data": original.splits.record,
        "seed": original.seed,
        "versions": versions((*TRAINING, "torch-pruning")),
    }
    done = stages.run(settings.kind(), inputs, work)
    folder = stages.folder(done.name)
    for training in (path for path in folder.iterdir() if path.is_dir()):
        shutil.rmtree(training)  # what it was needed for is done
    return _restored(before, folder), done


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


def _reduced(
    original: Subject, before: Subject, task: Task, settings: TorchPass, folder: Path
) -> tuple[Reduced, dict[str, Any]]:
    roles, served = task.roles(), task.served(task.roles())
    whole = reshape.layout(served)
    layouts = {role: reshape.layout(module) for role, module in roles.items()}
    digest = weights_digest(served)
    keeps_zeros = any(bool((value == 0).any()) for value in served.parameters() if value.ndim >= 2)

    def train(config: Any, name: str) -> None:
        zeros = keeps_zeros or settings.order >= SPARSE
        finetune(task, original.task, original.splits, config, original.recipe, folder / name, zeros)

    bench = TorchBench(
        task=task,
        served=served,
        example=before.export.example(),
        splits=original.splits,
        seed=original.seed,
        fixed=before.export.fixed,
        finetune=train,
        value=partial(_value, task, original),
    )
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
        "served": [*outcome.factored, *reshape.resized(whole, reshape.layout(served))],
        "roles": {
            role: [
                *_in_role(outcome.factored, served, module),
                *reshape.resized(layouts[role], reshape.layout(module)),
            ]
            for role, module in roles.items()
        },
    }


def _in_role(
    factored: Sequence[reshape.Change], served: nn.Module, module: nn.Module
) -> list[reshape.Change]:
    """Return the replaced layers by their names in a role, which may be a part of what is served."""
    names = {id(part): name for name, part in module.named_modules()}
    found: list[reshape.Change] = []
    for change in factored:
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
