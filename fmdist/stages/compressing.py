"""The compression stage."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmdist import component
from fmdist.errors import CheckpointError, UsageError
from fmdist.stages.checks import check_compression
from fmdist.stages.foreign import (
    Data,
    check_file,
    file_subject,
    is_model_file,
    module_subject,
    place,
    read_setting,
)
from fmdist.stages.places import ARTIFACTS, REPORT, open_trained
from fmdist.stages.recipe import Recipe, load_recipe, only
from fmdist.stages.using import report

if TYPE_CHECKING:
    from torch import nn

    from fmdist.compression.config import CompressConfig
    from fmdist.compression.subject import Subject
    from fmdist.data.arrays import Arrays

Passes = Mapping[str, Mapping[str, Any]] | Sequence[str | Mapping[str, Mapping[str, Any]]]
"""Kind of pass -> settings; or kinds, each alone or with its settings."""

logger = logging.getLogger(__name__)


def compress(
    run: Path | str | nn.Module,
    data: Data | Arrays | None = None,
    *,
    passes: Passes | None = None,
    max_drop: float | None = None,
    settings: Mapping[str, Any] | None = None,
    from_stage: str | None = None,
    output: Path | str | None = None,
    trust: bool = False,
) -> Path:
    """Turn a run's best checkpoint, or any model, into a verified artifact with a report; return its path.

    Args:
        run: the run's folder; or a model's file, ``.onnx``, ``.xml`` (OpenVINO), ``.pt2`` (torch.export) or
            ``.safetensors`` (weights of the recipe's model); or a module, which stays as it is.
        data: for a file or a module: a recipe with the sections ``data`` and ``task``; for a module also
            `fmdist.Arrays`, or a mapping of its fields.
        passes: kind of pass -> settings, such as ``{"prune_channels": {"ratio": 0.5}, "quantize": {}}``, or
            kinds alone, such as ``["quantize"]``: they override those of the recipe's ``compress`` section,
            or are added to it.
        max_drop: overrides the recipe's; in units of the primary metric.
        settings: override other keys of the recipe's ``compress`` section, such as
            ``{"benchmark": {"threads": 2}}``.
        from_stage: do this stage and all after it again, such as ``quantize``; unchanged stages are not.
        output: the artifact's folder, by default ``artifacts/<name of the run's folder>``, or of the recipe.
        trust: read a ``.pt2`` file, which can run any code that who made it put there.

    Raises:
        CompressionError: if a pass changed nothing, the artifact doesn't match, or the drop is too large.
        CheckpointError: if the run is training, or the run or the file can't be read.
        CapabilityError: if the model doesn't fit the data, or a pass can't be done to it.
        UsageError: if data is missing, or a run is given data beside its own.
    """
    component.require("compress", needed_by="fmdist compress")
    given = dict(settings or {}) | ({} if max_drop is None else {"max_drop": max_drop})
    output = None if output is None else Path(output)
    wanted = _Wanted(by_kind(passes), given, output, from_stage)
    if not isinstance(run, Path | str):
        return _compress_module(run, data, wanted)
    if data is not None or is_model_file(Path(run)):
        return _compress_file(check_file(run, data, trust), data, wanted)
    return _compress_run(Path(run), wanted)


@dataclass(frozen=True)
class _Wanted:
    """What a caller wants, whatever the model is."""

    passes: Mapping[str, Mapping[str, Any]]
    settings: Mapping[str, Any]
    output: Path | None
    from_stage: str | None


def _make(subject: Subject, config: CompressConfig, target: Path, wanted: _Wanted) -> None:
    """Write the artifact and its report.

    Raises:
        CompressionError: if no plan of a search keeps to its limits, once the best found is written.
    """
    from fmdist.compression.pipeline import compress as make_artifact
    from fmdist.compression.search import Search

    if config.search is None:
        make_artifact(subject, config, target, wanted.from_stage)
        report(target)
        return
    unmet = Search(subject, config, target, wanted.from_stage).run()
    report(target)
    if unmet is not None:
        raise unmet


def _compress_run(folder: Path, wanted: _Wanted) -> Path:
    from fmdist.compression.subject import Subject
    from fmdist.training import run as runs
    from fmdist.training.checkpoint import weights_digest

    loaded = load_recipe(runs.recipe_path(folder))
    runs.check_not_training(folder)
    config = compress_config(loaded, wanted.passes, wanted.settings)
    check_compression(loaded.model, config)
    recipe, splits, task = open_trained(folder)
    saved = runs.load_best(folder, task)
    subject = Subject(
        name=recipe.name,
        task=task,
        export=recipe.model.export(task.served(task.roles()), task.inputs),
        splits=splits,
        recipe={**recipe.plain, "compress": config.model_dump(mode="json")},
        source=f"{folder}/{saved.path.name}",
        fingerprint=weights_digest(task.served(task.roles())),
        run=runs.read_run(folder)["created"],
    )
    target = wanted.output or ARTIFACTS / folder.resolve().name
    _make(subject, config, target, wanted)
    try:
        runs.note(folder, {"artifact": os.path.relpath(target, folder)})
    except CheckpointError as error:  # a training that began meanwhile is no reason to lose the artifact
        logger.warning("%s is finished, but its run's record doesn't name it: %s", target, error)
    if (folder / REPORT).exists():
        report(folder)  # it gains the artifact's section
    return target


def _compress_file(file: Path, data: Any, wanted: _Wanted) -> Path:
    setting = read_setting(data, file.stem, model=file.suffix.lower() == ".safetensors")
    config = section(setting.plain, wanted.passes, wanted.settings)
    target = place(setting, wanted.output)
    with file_subject(file, setting, config) as (subject, possible):
        _make(subject, possible, target, wanted)
    return target


def _compress_module(module: nn.Module, data: Any, wanted: _Wanted) -> Path:
    from torch import nn

    if not isinstance(module, nn.Module) or data is None:
        wrong = not isinstance(module, nn.Module)
        raise UsageError(
            field="run" if wrong else "data",
            problem="neither a path nor a module" if wrong else "a module needs data",
            value=type(module).__name__,
            fix=""
            if wrong
            else "give fmdist.Arrays(train=(x, y), validation=(x, y), test=(x, y)), or a recipe",
        )
    setting = read_setting(data, type(module).__name__.lower())
    target = place(setting, wanted.output)
    config = section(setting.plain, wanted.passes, wanted.settings)
    _make(module_subject(module, setting, config), config, target, wanted)
    return target


def by_kind(passes: Passes | None) -> Mapping[str, Mapping[str, Any]]:
    """Return passes by kind, whichever way they were given.

    >>> by_kind(["quantize", {"prune_channels": {"ratio": 0.5}}])
    {'quantize': {}, 'prune_channels': {'ratio': 0.5}}
    """
    if passes is None or isinstance(passes, Mapping):
        return passes or {}
    found: dict[str, Mapping[str, Any]] = {}
    for item in [passes] if isinstance(passes, str) else passes:
        found |= {item: {}} if isinstance(item, str) else item
    return found


def compress_config(
    recipe: Recipe, passes: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]
) -> CompressConfig:
    """Return a recipe's ``compress`` section with what a caller wants in it, passes in their order."""
    return section(recipe.plain, passes, settings)


def section(
    recipe: Mapping[str, Any], passes: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]
) -> CompressConfig:
    """Return the same of a recipe's plain values."""
    from fmdist.compression.config import REPLACES
    from fmdist.recipe import parsing

    plain = copy.deepcopy(recipe.get("compress")) or {"passes": []}
    known = {item["kind"]: item for item in plain["passes"]}
    if REPLACES.keys() & passes.keys():
        # One alone may stand there, and the caller's goes before the recipe's.
        known = {kind: item for kind, item in known.items() if kind not in REPLACES}
    for kind, wanted in passes.items():
        known[kind] = {"kind": kind, **known.get(kind, {}), **wanted}
    orders = {kind: component.load(component.find("passes", kind)).order for kind in known}
    if passes:
        plain["passes"] = sorted(known.values(), key=lambda item: orders[item["kind"]])
    for key, value in settings.items():
        nested = isinstance(value, Mapping) and isinstance(plain.get(key), Mapping)
        plain[key] = {**plain[key], **value} if nested else value
    config: CompressConfig = parsing.parse({"compress": plain}, only("compress"))["compress"]
    return config
