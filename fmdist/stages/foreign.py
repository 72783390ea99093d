"""The compression of models that fmdist didn't train: files of other tools, modules of a program."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmdist import component
from fmdist.errors import CapabilityError, UsageError
from fmdist.stages.modules import Modules
from fmdist.stages.places import ARTIFACTS
from fmdist.stages.recipe import sections

if TYPE_CHECKING:
    from torch import nn

    from fmdist.compression.config import CompressConfig
    from fmdist.compression.subject import Subject
    from fmdist.contracts import ExportSpec, Task
    from fmdist.data.arrays import Arrays
    from fmdist.data.splits import DataSplits

Data = Path | str | Mapping[str, Any]
"""A recipe with the sections ``data`` and ``task``."""

_UNUSED = ("scaling", "transfer", "distill")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """What a model from elsewhere is compressed with."""

    parsed: Mapping[str, Any]
    """The sections of its recipe; without one, those that stand for it."""
    plain: dict[str, Any]
    """The same as plain JSON values."""
    arrays: Arrays | None = None
    """The data, if it isn't the recipe's."""

    @property
    def seed(self) -> int:
        """The recipe's."""
        return int(self.parsed["seed"])

    def splits(self) -> DataSplits:
        """Read the data."""
        if self.arrays is not None:
            return self.arrays.build()
        splits: DataSplits = self.parsed["data"].build(self.seed)
        return splits

    def task(self, splits: DataSplits, what: str) -> Task:
        """Return the task, whose model is still to come.

        Raises:
            CapabilityError: if the task isn't scored on the outputs of one model.
        """
        from fmdist.tasks.base import OneModelTask
        from fmdist.training.run import build_task

        config = self.parsed["task"]
        if config.needs == "outputs":
            task: Task = build_task(config, self.seed, splits.spec, Modules(None))
            if isinstance(task, OneModelTask):
                return task
        raise CapabilityError(
            field="task.kind",
            problem=f"'{config.kind()}' needs more of a model than its outputs, and {what} has nothing else",
            value=config.kind(),
            allowed="classification, multi_task, regression",
            fix="give the weights as .safetensors, with a recipe whose model section builds the module",
        )


def read_setting(data: Data | Arrays | Mapping[str, Any], name: str, model: bool = False) -> Setting:
    """Return what a model is compressed with.

    Args:
        data: a recipe, whose ``train`` section counts only where a pass trains on, or arrays.
        name: of the model, if the recipe gives none.
        model: whether the recipe must have a ``model`` section.

    Raises:
        RecipeError: every mistake of the recipe at once.
        DataError: if arrays can't be used.
    """
    from fmdist.data.arrays import Arrays
    from fmdist.recipe import parsing
    from fmdist.recipe.resolved import to_plain

    named = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")[:100] or "model"
    specs = sections()
    if not model:
        specs = {**specs, "model": replace(specs["model"], default=None)}
    specs = {**specs, "name": replace(specs["name"], default=named)}
    arrays = None
    if isinstance(data, Arrays) or (isinstance(data, Mapping) and "train" in data and "data" not in data):
        arrays = data if isinstance(data, Arrays) else _arrays(data)
        specs = {**specs, "data": replace(specs["data"], default=None)}
        data = {"task": {"kind": arrays.task}}
    parsed = parsing.parse(data, specs) if isinstance(data, Mapping) else parsing.load(Path(data), (), specs)
    if unused := [section for section in _UNUSED if parsed[section] is not None]:
        logger.warning("%s of the recipe is not used: this model is trained", ", ".join(unused))
    kept = {section: value for section, value in parsed.items() if section not in _UNUSED}
    if not model:
        kept["model"] = None
    return Setting(kept, to_plain(kept), arrays)


def _arrays(data: Mapping[str, Any]) -> Arrays:
    from fmdist.data.arrays import Arrays

    allowed = ("train", "validation", "test", "task", "names")
    if wrong := [key for key in data if key not in allowed] or [
        key for key in allowed[:3] if key not in data
    ]:
        raise UsageError(
            field="data",
            problem="a key that is unknown or missing",
            value=wrong[0],
            allowed=", ".join(allowed),
        )
    return Arrays(**data)


@contextmanager
def file_subject(
    file: Path, setting: Setting, config: CompressConfig
) -> Iterator[tuple[Subject, CompressConfig]]:
    """Yield the model of a file as a subject, and its ``compress`` section with what is possible for it.

    Raises:
        CapabilityError: if a pass can't be done to it, or the data isn't what it reads.
        CheckpointError: if the file is damaged.
    """
    from fmdist.compression import elsewhere

    suffix = file.suffix.lower()
    if suffix in (".onnx", ".xml"):
        config = elsewhere.check_runtimes(config, file)
    if suffix != ".safetensors":
        elsewhere.check_passes(config, f"a {suffix} file")
    digest = elsewhere.digest_of(file)
    with tempfile.TemporaryDirectory(prefix="fmdist-") as folder:
        splits = setting.splits()
        if suffix == ".safetensors":
            task, export = _weights(file, setting, splits, config)
        else:
            task = setting.task(splits, f"a {suffix} file")
            if suffix == ".pt2":
                export = elsewhere.adopt(task, elsewhere.read_program(file))
            else:
                export = elsewhere.host(file, task, Path(folder))
            elsewhere.check_sane(task, export, splits)
        yield (
            _subject(setting, config, splits, task, export, (str(file), digest, str(file.resolve()))),
            config,
        )


def module_subject(module: nn.Module, setting: Setting, config: CompressConfig) -> Subject:
    """Return a module of this process as a subject; the module itself stays as it is.

    Raises:
        CapabilityError: if the data isn't what it reads.
    """
    import copy

    from fmdist.compression import elsewhere

    splits = setting.splits()
    task = setting.task(splits, "a module")
    export = elsewhere.adopt(task, copy.deepcopy(module).cpu())
    elsewhere.check_sane(task, export, splits)
    kind = f"{type(module).__module__}.{type(module).__qualname__}"
    return _subject(setting, config, splits, task, export, (kind, elsewhere.digest_of_module(module), ""))


def _weights(
    file: Path, setting: Setting, splits: DataSplits, config: CompressConfig
) -> tuple[Task, ExportSpec]:
    """Return the recipe's task with the weights of a file."""
    from fmdist.compression.elsewhere import check_sane, load_weights
    from fmdist.stages.checks import check_compression, check_form
    from fmdist.training.run import build_task

    model, task_config = setting.parsed["model"], setting.parsed["task"]
    check_form(model, task_config)
    check_compression(model, config)
    task = build_task(task_config, setting.seed, splits.spec, Modules(model))
    if len(task.roles()) > 1:
        raise CapabilityError(
            field="task.kind",
            problem="the task has several modules, and a file holds the weights of one",
            value=task_config.kind(),
            fix="give the run: fmdist compress runs/NAME",
        )
    module = task.served(task.roles())
    load_weights(file, module)
    for part in task.roles().values():
        part.eval()
    export = model.export(module, task.inputs)
    if task_config.needs == "outputs":
        check_sane(task, export, splits)
    return task, export


def _subject(
    setting: Setting,
    config: CompressConfig,
    splits: DataSplits,
    task: Task,
    export: ExportSpec,
    origin: tuple[str, str, str],
) -> Subject:
    from fmdist.compression.subject import Subject

    source, fingerprint, run = origin
    return Subject(
        name=setting.parsed["name"],
        task=task,
        export=export,
        splits=splits,
        recipe={**setting.plain, "compress": config.model_dump(mode="json")},
        source=source,
        fingerprint=fingerprint,
        foreign=True,
        run=run,
    )


def is_model_file(path: Path) -> bool:
    """Return whether a path means a model's file, which may be missing, and not a run's folder."""
    from fmdist.compression.vetting import FORMATS

    return path.is_file() or (path.suffix.lower() in FORMATS and not path.is_dir())


def check_file(model: Path | str, data: object, trust: bool) -> Path:
    """Return a model's file after checking by its name alone what it holds, and that there is data for it.

    Raises:
        UsageError: if there is no data, or the file is of no known format.
        CapabilityError: if reading the file can run code.
    """
    from fmdist.compression.vetting import check_format

    component.require("compress", needed_by="fmdist compress")
    file = Path(model)
    if file.is_dir():
        raise UsageError(
            field="--data",
            problem=f"{file} is a folder, and a run is compressed with its own data",
            fix="leave --data out, or name a model's file",
        )
    check_format(file, trust)
    if data is None:
        raise UsageError(
            field="--data",
            problem="the model of a file needs data that it is scored and calibrated on",
            allowed="a recipe with the sections data and task",
            fix=f"write fmdist compress {file} --data RECIPE.yaml",
        )
    return file


def place(setting: Setting, output: Path | None) -> Path:
    """Return where the artifact goes."""
    return output or ARTIFACTS / str(setting.parsed["name"])
