"""The training stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fmdist.stages.modules import new_task, open_task
from fmdist.stages.places import RUNS
from fmdist.stages.recipe import Source, load_recipe

if TYPE_CHECKING:
    from fmdist.contracts import Context


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
    interval: tuple[float, float]
    """95% confidence interval of the primary metric."""


def train(
    recipe: Source,
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
    from fmdist.training.engine import check_here
    from fmdist.training.scoring import score_split, write_scores
    from fmdist.training.session import train_run

    loaded = load_recipe(recipe, overrides)
    plain = loaded.plain
    folder = output or RUNS / loaded.name
    check_here(loaded.train, context := context or Context())
    with runs.open_run(folder, plain) as run:
        data = loaded.data.build(loaded.seed, quarantine=folder / "quarantine.jsonl")
        task, transfer = new_task(loaded, data.spec)
        if transfer is not None:
            if not runs.saved_anything(folder):
                run.record["transfer"] = transfer.initialize(open_task)
            transfer.adapt()
            transfer.restrict()
        learned = task if loaded.distill is None else taught_task(run, task, loaded.distill, data)
        runs.begin(run, plain, runs.signature(task, data), data.record)
        train_run(run, learned, data, loaded.train, loaded.seed, context, profile)
        saved = runs.load_best(folder, task)
        record, rows = score_split(
            task, data.test, "test", data.train.plain(), loaded.train.evaluation_batch_size, loaded.seed
        )
        write_scores(folder / "evaluation", record, task.decoding(), rows, data.test)
        run.write("finished", {"best_step": saved.step})
    low, high = record["interval"]
    return Trained(folder, record["metrics"], record["baseline"], record["primary"], (low, high))
