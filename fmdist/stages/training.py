"""The training stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmdist.stages.modules import new_task, open_task
from fmdist.stages.places import RUNS
from fmdist.stages.recipe import Source, load_recipe

if TYPE_CHECKING:
    from fmdist.contracts import Context, Task
    from fmdist.data.splits import DataSplits
    from fmdist.stages.recipe import Recipe
    from fmdist.training.distill_config import DistillConfig
    from fmdist.training.run import RunFolder
    from fmdist.training.scaling import ScalingConfig


@dataclass(frozen=True)
class Trained:
    """A finished training run."""

    folder: Path
    metrics: Mapping[str, float]
    """Of the best checkpoint on the test split."""
    baseline: Mapping[str, float]
    """Of the trivial predictor on the test split."""
    primary: str
    """Name of the metric that chose the checkpoint."""
    interval: tuple[float, float] | None
    """95% confidence interval of the primary metric; None where resampling says nothing of it."""


def train(
    recipe: Source,
    *,
    output: Path | None = None,
    overrides: Sequence[str] = (),
    profile: bool = False,
    address: str | None = None,
) -> Trained:
    """Train a recipe's model into a run folder; resumes an unfinished run of the same recipe.

    One worker trains in this process, unless a cluster is named; several are started by Ray.

    Args:
        recipe: a path, a mapping or a `Recipe`.
        output: the run's folder, by default ``runs/<name>``.
        overrides: such as ``train.lr=1e-3``.
        profile: write a trace and a table of where a step's time goes to ``profile/``.
        address: of a running Ray cluster, such as ``auto`` or ``HOST:PORT``.

    Raises:
        Interrupted: on SIGTERM or SIGINT, once the state is saved.
        TrainingError, DataError, CheckpointError, CapabilityError: see `fmdist.errors`.
    """
    from fmdist.contracts import Context
    from fmdist.data.loader import possible_workers
    from fmdist.data.plan import BatchPlan
    from fmdist.training import run as runs
    from fmdist.training.engine import check_here
    from fmdist.training.mirror import check_store
    from fmdist.training.scaling import ScalingConfig
    from fmdist.training.scoring import score_split, write_scores
    from fmdist.training.session import train_run

    loaded = load_recipe(recipe, overrides)
    plain = loaded.plain
    folder = output or RUNS / loaded.name
    check_here(loaded.train, Context())
    check_store(loaded.train.checkpoint.store, loaded.name)
    scaling = loaded.scaling or ScalingConfig()
    alone = address is None and scaling.most == 1 and scaling.strategy == "ddp"
    with nullcontext() if alone else _ready(scaling, address), runs.open_run(folder, plain) as run:
        data = loaded.data.build(loaded.seed, quarantine=folder / "quarantine.jsonl")
        task, learned = _tasks(loaded, data, run)
        plan = BatchPlan(len(data.train), loaded.train.batch_size, loaded.seed, None, loaded.train.drop_last)
        sizes = possible_workers(plan, loaded.train.accumulate, scaling.least, scaling.most)
        runs.begin(run, plain, runs.signature(task, data), data.record)
        if alone:
            train_run(run, learned, data, loaded.train, loaded.seed, Context(), profile, loaded.scaling)
        else:
            try:
                _train_on_workers(loaded, scaling, folder, sizes, profile)
            finally:
                run.record |= runs.read_run(folder)  # the first worker has kept it
        saved = runs.load_best(folder, task)
        record, rows = score_split(
            task, data.test, "test", data.train.plain(), loaded.train.evaluation_batch_size, loaded.seed
        )
        write_scores(folder / "evaluation", record, task.decoding(), rows, data.test)
        run.write("finished", {"best_step": saved.step})
    return Trained(folder, record["metrics"], record["baseline"], record["primary"], record["interval"])


def _ready(scaling: ScalingConfig, address: str | None) -> AbstractContextManager[None]:
    # Imported here: Ray takes half a second, and most runs don't need it.
    from fmdist.orchestration import overseer

    return overseer.ready(scaling, address)


def _train_on_workers(
    recipe: Recipe, scaling: ScalingConfig, folder: Path, sizes: Sequence[int], profile: bool
) -> None:
    """Train on the recipe's workers, each of which reads the data and builds the task anew."""
    from functools import partial

    from fmdist import component
    from fmdist.orchestration import workers

    here = Path.cwd()
    # A job's working directory has another path on another machine: what lies in it is named from there.
    plugins = [
        found.relative_to(here) if found.is_relative_to(here) else found
        for found in component.plugin_folders()
    ]
    work = partial(work_on, recipe.plain, folder.resolve(), here, plugins, profile)
    workers.train_on_workers(work, scaling, folder.resolve(), sizes)


def work_on(
    recipe: Mapping[str, Any],
    folder: Path,
    directory: Path,
    plugins: Sequence[Path],
    profile: bool,
    context: Context,
) -> None:
    """Train as one of the workers of the run in ``folder``; the process that started them keeps the rest.

    Args:
        recipe: resolved.
        folder: of the run, which has begun.
        directory: what relative paths start from; the worker of a job may be in a copy of it already.
        plugins: folders of plug-ins.
        profile: see `train`.
        context: where this worker stands.
    """
    import logging
    import os

    from fmdist import component
    from fmdist.errors import Interrupted
    from fmdist.training import run as runs
    from fmdist.training.session import train_run

    leads = context.rank == 0
    logging.getLogger("fmdist").setLevel(logging.INFO if leads else logging.ERROR)
    if directory.is_dir():
        os.chdir(directory)
    for plugin in plugins:
        component.add_plugin_folder(plugin)
    loaded = load_recipe(recipe)
    run = runs.RunFolder(folder, loaded.plain, writes=leads)
    data = loaded.data.build(loaded.seed)
    _, learned = _tasks(loaded, data, run)
    try:
        train_run(run, learned, data, loaded.train, loaded.seed, context, profile, loaded.scaling)
    except Interrupted:
        run.write("interrupted", {})
        raise


def _tasks(recipe: Recipe, data: DataSplits, run: RunFolder) -> tuple[Task, Task]:
    """Return the task as training begins, and as it is trained: with its teacher, if it has one.

    A resumed run has its weights from its checkpoints.
    """
    from fmdist.training.meaning import meaning_of
    from fmdist.training.run import saved_anything

    task, transfer = new_task(recipe, data.spec)
    if transfer is not None:
        if not saved_anything(run.path):
            run.record["transfer"] = transfer.initialize(open_task, meaning_of(data.preprocess))
        transfer.adapt()
        transfer.restrict()
    if recipe.distill is None:
        return task, task
    return task, _with_teacher(task, recipe.distill, data, run)


def _with_teacher(task: Task, config: DistillConfig, data: DataSplits, run: RunFolder) -> Task:
    """Return the task with a teacher, which must stay the same one when the run is resumed."""
    from fmdist.errors import CheckpointError
    from fmdist.training.checkpoint import weights_digest
    from fmdist.training.distillation import Teacher, distill
    from fmdist.training.run import read_signature

    taught_by = open_task(config.teacher)
    teacher = Teacher(taught_by, read_signature(config.teacher)["preprocessing"])
    fingerprint = weights_digest(taught_by.served(taught_by.roles()))
    before = run.record.get("distill", {}).get("fingerprint", fingerprint)
    if before != fingerprint:
        raise CheckpointError(
            field="distill.teacher",
            problem="the teacher has changed since training began",
            value=str(config.teacher),
            fix="restore it, or train into another directory",
        )
    run.record["distill"] = {"teacher": str(config.teacher), "fingerprint": fingerprint}
    return distill(task, config, teacher, data)
