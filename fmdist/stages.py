"""The stages of a model's life: composes the recipe's schema from their sections, and is the Python API.

Every verb of the command line is one function here. Each takes a recipe (a path, a mapping, or a `Recipe`) or the
folder that an earlier verb left.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from fmdist import storage
from fmdist.compression.config import CompressConfig
from fmdist.errors import CheckpointError, DataError, UsageError
from fmdist.recipe import overrides as override
from fmdist.recipe import reader
from fmdist.recipe.parsing import parse
from fmdist.recipe.resolved import to_plain
from fmdist.recipe.schema import Plugin, SectionSpec
from fmdist.training.config import TrainConfig

if TYPE_CHECKING:
    from fmdist.contracts import Context, Task
    from fmdist.data.base import DataConfig
    from fmdist.data.splits import DataSplits, Split
    from fmdist.models.base import ModelConfig
    from fmdist.tasks.base import TaskConfig

RUNS, ARTIFACTS = Path("runs"), Path("artifacts")
"""Where runs and artifacts are kept unless told otherwise."""

SPLITS = ("train", "validation", "test")

SECTIONS: dict[str, SectionSpec] = {
    "name": SectionSpec(
        Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")],
        summary="Names the run's folder; by default the recipe's file name.",
    ),
    "seed": SectionSpec(
        Annotated[int, Field(ge=0, lt=2**63)], default=0, summary="Keys the split, the weights and every draw."
    ),
    "data": SectionSpec(Plugin("data"), summary="What to learn from."),
    "model": SectionSpec(Plugin("models"), summary="The architecture; its sizes follow from the data."),
    "task": SectionSpec(Plugin("tasks"), summary="What is learned."),
    "train": SectionSpec(TrainConfig, default={}, summary="How it is trained."),
    "compress": SectionSpec(CompressConfig, default=None, summary="How the trained model is made smaller."),
}
"""The recipe's top-level keys, each owned by its stage."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """A validated recipe."""

    name: str
    seed: int
    data: DataConfig
    model: ModelConfig
    task: TaskConfig
    train: TrainConfig
    compress: CompressConfig | None

    @property
    def plain(self) -> dict[str, Any]:
        """The resolved recipe as plain JSON values."""
        return to_plain({name: getattr(self, name) for name in SECTIONS})


@dataclass(frozen=True)
class Trained:
    """A finished training run."""

    folder: Path
    metrics: Mapping[str, float]
    """Of the best checkpoint on the test split."""
    baseline: Mapping[str, float]
    """Of the trivial predictor on the test split."""
    interval: tuple[float, float]
    """95% confidence interval of the primary metric."""


def load_recipe(source: Path | str | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a YAML file or a mapping, with overrides such as ``train.lr=1e-3`` applied.

    Raises:
        UsageError: if there is no such file.
        RecipeError: every mistake of the recipe at once.
        DependencyMissing: if only extras are missing.
    """
    if isinstance(source, Recipe):
        source = source.plain
    if isinstance(source, Mapping):
        raw = reader.Raw(dict(source), {})
    else:
        raw = reader.read(Path(source))
        raw.values.setdefault("name", Path(source).stem)
    raw = override.apply(raw, overrides)
    return Recipe(**parse(raw.values, SECTIONS, raw.lines))


def train(
    recipe: Path | str | Mapping[str, Any] | Recipe,
    *,
    output: Path | None = None,
    overrides: Sequence[str] = (),
    profile: bool = False,
    context: Context | None = None,
) -> Trained:
    """Train a recipe's model into a run folder; resumes an unfinished run of the same recipe.

    Args:
        recipe: a path, a mapping or a `Recipe`.
        output: the run's folder, by default ``runs/<name>``.
        overrides: such as ``train.lr=1e-3``.
        profile: write a trace and a table of where a step's time goes to ``profile/``.
        context: where this process stands in a distributed run; alone by default.

    Raises:
        Interrupted: on SIGTERM or SIGINT, once the state is saved.
        TrainingError, DataError, CheckpointError, CapabilityError: see `fmdist.errors`.
    """
    from fmdist.contracts import Context
    from fmdist.training import run as runs
    from fmdist.training.scoring import score_split, write_scores
    from fmdist.training.session import train_run

    loaded = load_recipe(recipe, overrides)
    plain = loaded.plain
    folder = output or RUNS / loaded.name
    with runs.open_run(folder, plain) as run:
        data = loaded.data.build(loaded.seed, quarantine=folder / "quarantine.jsonl")
        task = _build_task(loaded, data)
        runs.begin(run, plain, _signature(task, data), data.record)
        progress = train_run(run, task, data, loaded.train, loaded.seed, context or Context(), profile)
        saved = runs.load_best(folder, task, task.primary[1])
        record, outputs = score_split(
            task, data.test, "test", data.train.targets, loaded.train.evaluation_batch_size, loaded.seed
        )
        write_scores(folder / "evaluation", record, outputs, data.test)
        run.write("finished", runs.summary(progress, task) | {"best_step": saved.step})
    return Trained(folder, record["metrics"], record["baseline"], tuple(record["interval"]))


def compress(
    run: Path | str,
    *,
    quantize: str | None = None,
    max_drop: float | None = None,
    output: Path | None = None,
) -> Path:
    """Turn a run's best checkpoint into a verified artifact and return the artifact's folder.

    Args:
        run: the run's folder.
        quantize: ``int8`` quantizes whatever the recipe says; None does what its ``compress`` section says.
        max_drop: overrides the recipe's; in units of the primary metric.
        output: the artifact's folder, by default ``artifacts/<name of the run's folder>``.

    Raises:
        CompressionError: if a pass changed nothing, the artifact doesn't match, or the drop is too large.
    """
    from fmdist import component

    component.require("compress", needed_by="fmdist compress")
    from fmdist.compression.pipeline import compress as run_pipeline
    from fmdist.compression.subject import Subject
    from fmdist.reports import write
    from fmdist.training import run as runs
    from fmdist.training.checkpoint import weights_digest

    folder = Path(run)
    recipe, data, task = _open(folder)
    saved = runs.load_best(folder, task, task.primary[1])
    subject = Subject(
        name=recipe.name,
        task=task,
        exports=recipe.model.exports(task.roles(), data.spec),
        splits=data,
        recipe=recipe.plain,
        source=f"{folder}/{saved.path.name}",
        fingerprint=weights_digest(task.roles()["model"]),
    )
    target = output or ARTIFACTS / folder.name
    run_pipeline(subject, _compress_config(recipe, quantize, max_drop), target)
    write(target)
    return target


def evaluate(target: Path | str, *, split: str = "test", runtime: str = "openvino") -> dict[str, Any]:
    """Return the scores of a run's best checkpoint, or of an artifact in a runtime, on a split.

    Args:
        target: the folder of a run or an artifact.
        split: ``train``, ``validation`` or ``test``.
        runtime: ``openvino`` or ``onnxruntime``, for an artifact.

    Raises:
        DataError: if the recipe's data is no longer what it was.
    """
    from fmdist.training import run as runs
    from fmdist.training.scoring import score_outputs, score_split

    if split not in SPLITS:
        raise UsageError(field="--split", problem="no such split", value=split, allowed=", ".join(SPLITS))
    folder = Path(target)
    if is_artifact(folder):
        from fmdist.deployment.artifact import load

        artifact = load(folder, runtime=runtime)
        recipe = load_recipe(artifact.manifest["recipe"])
        data = recipe.data.build(recipe.seed)
        _check_data(folder, artifact.manifest["data"], data.record)
        task = _build_task(recipe, data)
        part = _split(data, split)
        outputs = artifact.dataset_outputs(part)
        return score_outputs(task, part, split, data.train.targets, outputs, recipe.seed) | {"runtime": runtime}
    recipe, data, task = _open(folder)
    runs.load_best(folder, task, task.primary[1])
    size = recipe.train.evaluation_batch_size
    return score_split(task, _split(data, split), split, data.train.targets, size, recipe.seed)[0]


def is_artifact(folder: Path) -> bool:
    """Return whether a folder holds an artifact (and not a run)."""
    return (folder / storage.MANIFEST).is_file()


def _build_task(recipe: Recipe, data: DataSplits) -> Task:
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        return recipe.task.build(data.spec, recipe.model)


def _signature(task: Task, data: DataSplits) -> dict[str, Any]:
    return {
        "spec": data.spec.to_json(),
        "preprocessing": data.preprocess.to_json(),
        "decoding": task.decoding(),
    }


def _open(folder: Path) -> tuple[Recipe, DataSplits, Task]:
    """Return a run's recipe, its data as it was, and its task in the initial state."""
    from fmdist.training import run as runs

    runs.read_run(folder)
    recipe = load_recipe(folder / runs.RECIPE)
    data = recipe.data.build(recipe.seed)
    _check_data(folder, storage.read_json(folder / "data.json"), data.record)
    return recipe, data, _build_task(recipe, data)


def _check_data(folder: Path, was: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if changed := [name for name in SPLITS if was["sha256"][name] != now["sha256"][name]]:
        raise DataError(
            field=str(folder),
            problem=f"the data has changed since training: another {' and '.join(changed)} split",
            fix="restore the data, or train again",
        )


def _split(data: DataSplits, name: str) -> Split:
    return {"train": data.train.plain(), "validation": data.validation, "test": data.test}[name]
