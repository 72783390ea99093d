"""A run's folder: who may write it, whether it may be resumed, and what it records.

::

    runs/<name>/
        run.json          status, position, metrics, versions; rewritten atomically
        recipe.yaml       the resolved recipe
        signature.json    what the model reads and answers: spec, preprocessing, decoding
        data.json         sizes and hashes of the splits, what cleaning removed; quarantine.jsonl beside it
        metrics.jsonl     a line per training record and evaluation
        checkpoints/      see `fmdist.training.checkpoint`
        evaluation/       scores, outputs and examples of the test split
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

from fmdist import storage
from fmdist.contracts import DataSpec, ModelBuilder, Task
from fmdist.data.splits import DataSplits
from fmdist.environment import TRAINING, hardware, versions
from fmdist.errors import CheckpointError, DataError, Interrupted, did_you_mean
from fmdist.recipe.reader import read
from fmdist.recipe.resolved import fingerprint, to_yaml
from fmdist.tasks.base import TaskConfig
from fmdist.training.adapters import merge_adapters
from fmdist.training.checkpoint import STATE, CheckpointStore, Saved, differences, load_weights
from fmdist.training.config import RESUMABLE, CheckpointConfig
from fmdist.training.loop import Progress

FORMAT = 2
"""Version of the folder's layout; an unknown one is refused by name."""

RECORD = "run.json"
RECIPE = "recipe.yaml"
SIGNATURE = "signature.json"
DATA = "data.json"
CHECKPOINTS = "checkpoints"
EVALUATION = "evaluation"

_OWN = frozenset({storage.LOCK, "quarantine.jsonl"})
"""Files that a run may leave before it has begun."""

_ORIGINS = ("transfer", "distill")
"""Keys of the record that tell what a run began with, which a resumed run can't tell anew."""

logger = logging.getLogger(__name__)


class RunFolder:
    """A run's folder, held by this process. Open it with `open_run`.

    Args:
        path: the folder.
        recipe: the resolved recipe.
        writes: false for a worker that leaves the record to another.
    """

    def __init__(self, path: Path, recipe: Mapping[str, Any], writes: bool = True) -> None:
        self.path = path
        self._writes = writes
        self.record: dict[str, Any] = {
            "format": FORMAT,
            "name": recipe["name"],
            "status": "running",
            "created": _now(),
            "recipe_sha256": fingerprint(recipe),
            "versions": versions(TRAINING),
            "hardware": {**hardware(), "threads": torch.get_num_threads(), "gpu": _gpu()},
        }
        self.origin = {"recipe": recipe, "versions": self.record["versions"]}
        """What a checkpoint says of where it came from."""
        if (path / RECORD).exists():
            before = read_run(path)
            kept = ("created", *_ORIGINS) if saved_anything(path) else ("created",)
            self.record |= {key: before[key] for key in kept if key in before}

    def write(self, status: str, values: Mapping[str, Any]) -> None:
        """Rewrite ``run.json`` with a status and further values."""
        self.record |= {**values, "status": status, "updated": _now()}
        if not self._writes:
            return
        storage.write_json(self.path / RECORD, self.record)


@contextmanager
def open_run(path: Path, recipe: Mapping[str, Any]) -> Iterator[RunFolder]:
    """Hold a new run's folder, or that of a run that the recipe lets go on, and keep its status true.

    Raises:
        CheckpointError: if another process writes there, or the folder holds something else, another recipe's
            run, one of more epochs, or a finished run that the recipe gives nothing to do.
    """
    fresh = not path.exists()
    if not fresh:
        _check(path, recipe)  # before the lock leaves its file in a folder that is none of ours
    with storage.lock(path):
        _check(path, recipe)
        for folder in (path, path / EVALUATION):
            storage.remove_leftovers(folder)
        run = RunFolder(path, recipe)
        try:
            yield run
        except (Interrupted, KeyboardInterrupt):
            _write_last(run, "interrupted")
            raise
        except BaseException:
            if (path / RECORD).exists():
                _write_last(run, "failed")
            elif fresh and {file.name for file in path.iterdir()} <= {storage.LOCK}:
                (path / storage.LOCK).unlink()
                path.rmdir()
            raise


def _write_last(run: RunFolder, status: str) -> None:
    try:
        run.write(status, {})
    except OSError as error:  # a full disk: what ended the run is worth more than this
        logger.warning("%s: the status '%s' could not be written (%s)", run.path / RECORD, status, error)


def begin(
    run: RunFolder, recipe: Mapping[str, Any], answers: Mapping[str, Any], data: Mapping[str, Any]
) -> None:
    """Write what stands before the first step: from here on the folder is a run.

    ``run.json`` comes first: a kill in between must leave neither files without a run, nor a recipe with more
    epochs beside a run that says it is finished. The evaluation of a finished run that goes on is removed,
    since it says nothing of the weights to come.

    Raises:
        DataError: if the run goes on from a checkpoint and the data is no longer what it was.
    """
    if (run.path / CHECKPOINTS).is_dir() and (run.path / DATA).is_file():
        was = storage.read_json(run.path / DATA)
        check_data(run.path, was.get("sha256", {}), data.get("sha256", {}))
    if (run.path / RECIPE).is_file() and not saved_anything(run.path):
        logger.info("%s: starting over, since the run there had saved nothing yet", run.path)
        shutil.rmtree(run.path / "tensorboard", ignore_errors=True)
    run.write("running", {})
    if (run.path / EVALUATION).is_dir():
        shutil.rmtree(run.path / EVALUATION)
    storage.write_text(run.path / RECIPE, to_yaml(recipe))
    storage.write_json(run.path / SIGNATURE, answers)
    storage.write_json(run.path / DATA, data)


def check_data(folder: Path, was: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Compare the hashes of the splits with those of the training.

    Raises:
        DataError: naming the splits that are no longer what they were.
    """
    if changed := [split for split in was if was[split] != now.get(split)]:
        raise DataError(
            field=str(folder),
            problem=f"the data has changed since training began: another {' and '.join(changed)} split",
            fix="restore the data, or train again into another directory",
        )


def build_task(config: TaskConfig, seed: int, spec: DataSpec, model: ModelBuilder) -> Task:
    """Return a task in the initial state that ``seed`` decides; global random state is left alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return config.build(spec, model)


def signature(task: Task, data: DataSplits) -> dict[str, Any]:
    """Return what a model reads and answers, as JSON values."""
    return {
        "spec": data.spec.to_json(),
        "preprocessing": data.preprocess.to_json(),
        "decoding": task.decoding(),
    }


def read_signature(path: Path) -> dict[str, Any]:
    """Return what a run's model reads and answers; see `signature`."""
    return dict(storage.read_json(path / SIGNATURE))


def summary(progress: Progress, task: Task) -> dict[str, Any]:
    """Return what ``run.json`` says of a run's position."""
    name, mode = task.primary
    return {
        "seconds": progress.seconds,
        "epoch": progress.epoch,
        "step": progress.step,
        "stopped_early": progress.stopped_early,
        "primary": {"name": name, "mode": mode, "value": progress.best},
        "metrics": progress.metrics,
    }


def read_run(path: Path) -> dict[str, Any]:
    """Return a run's record.

    Raises:
        CheckpointError: if the folder isn't a run of a known format.
    """
    if not (path / RECORD).is_file():
        siblings = (
            [other.parent.name for other in path.parent.glob(f"*/{RECORD}")] if path.parent.is_dir() else []
        )
        raise CheckpointError(
            field=str(path),
            problem=f"not a run: it has no {RECORD}" if path.is_dir() else "no such run",
            allowed=", ".join(sorted(siblings)),
            fix=did_you_mean(path.name, siblings),
        )
    try:
        record = storage.read_json(path / RECORD)
    except CheckpointError:
        record = None
    if not isinstance(record, dict) or "status" not in record:
        raise CheckpointError(
            field=str(path / RECORD),
            problem="the file is damaged: it holds no run's record",
            fix="remove this file: the same command then goes on from the checkpoints",
        )
    if record.get("format") != FORMAT:
        raise CheckpointError(
            field=str(path / RECORD),
            problem="a run of an unknown format",
            value=record.get("format"),
            allowed=str(FORMAT),
            fix="use the fmdist version that wrote it",
        )
    return dict(record)


def recipe_path(path: Path) -> Path:
    """Return where a run's resolved recipe stands, after checking that there is a run."""
    read_run(path)
    return path / RECIPE


def is_finished(path: Path, recipe: Mapping[str, Any]) -> bool:
    """Return whether ``path`` holds a finished run in which this recipe leaves nothing to train.

    False too for a recipe that `open_run` refuses: for fewer epochs than were made, or another recipe.
    """
    if not (path / RECORD).exists():
        return False
    record, old = read_run(path), read(path / RECIPE).values
    if record["status"] != "finished" or differences(old, recipe):
        return False
    asked = record["epoch"] <= recipe["train"]["epochs"] <= old["train"]["epochs"]
    return asked and bool(_to_train_on(record, old, recipe))


def update_recipe(path: Path, recipe: Mapping[str, Any]) -> None:
    """Let a finished run's recipe say how to compress it; of the training it still says what was done."""
    with storage.lock(path):
        values = dict(read(path / RECIPE).values)
        values.pop("compress", None)
        later = {"compress": recipe["compress"]} if "compress" in recipe else {}
        storage.write_text(path / RECIPE, to_yaml(values | later))


def check_not_training(path: Path) -> None:
    """Raise `CheckpointError` if another process is writing into a run's folder."""
    try:
        with storage.lock(path):
            pass
    except CheckpointError:
        raise CheckpointError(
            field=str(path),
            problem="another process is writing here, such as the run's training",
            fix="wait until it has ended, or stop it; a stopped run can be compressed too",
        ) from None


def note(path: Path, values: Mapping[str, Any]) -> None:
    """Add values to a run's record."""
    with storage.lock(path):
        storage.write_json(path / RECORD, {**read_run(path), **values})


def load_best(path: Path, task: Task) -> Saved:
    """Load the weights of a run's best checkpoint (their moving average, if there is one) into ``task``.

    Adapters are merged into the weights that they adapt: what is left are plain modules.

    Raises:
        CheckpointError: if there is no whole checkpoint with a score, or it is another model's.
    """
    read_run(path)
    origin = {"recipe": read(path / RECIPE).values}
    store = CheckpointStore(path / CHECKPOINTS, task.primary[1], CheckpointConfig(), origin)
    saved = store.best()
    if saved is None:
        raise CheckpointError(
            field=str(path),
            problem="the run has no whole checkpoint that was evaluated",
            fix="let it train for at least one evaluation",
        )
    for role, module in task.roles().items():
        averaged = saved.path / f"ema.{role}.safetensors"
        load_weights(module, averaged if averaged.exists() else saved.path / f"{role}.safetensors")
        merge_adapters(module)
        module.eval()
    return saved


def _check(path: Path, recipe: Mapping[str, Any]) -> None:
    if not path.is_dir():
        raise CheckpointError(field=str(path), problem="not a directory", fix="give another with -o")
    names = {file.name for file in path.iterdir()}
    # A run whose record was removed keeps its lock file; elsewhere recipe.yaml may be anyone's.
    if RECORD not in names and not names >= {storage.LOCK, RECIPE}:
        if others := sorted(name for name in names - _OWN if not fnmatch(name, f".{RECORD}.*.tmp")):
            raise CheckpointError(
                field=str(path),
                problem="the output directory is not empty and holds no run",
                value=others[:5],
                fix="give another with -o",
            )
        return
    record = read_run(path) if RECORD in names else {"status": "unknown"}
    if RECIPE not in names:  # killed before the recipe was written
        return
    old = read(path / RECIPE).values
    changed = differences(old, recipe)
    if changed and not saved_anything(path):
        return
    if changed:
        raise CheckpointError(
            field=str(path),
            problem=f"the directory holds another run: the recipe differs in {', '.join(changed)}",
            allowed=f"on resume only train.{', train.'.join(sorted(RESUMABLE))} and compress may change",
            fix="give another directory with -o, or another name",
        )
    wanted, (made, begun) = recipe["train"]["epochs"], _epochs_made(path, record)
    if wanted < made + begun:
        done = "1 epoch is" if made == 1 else f"{made} epochs are"
        raise CheckpointError(
            field="train.epochs",
            problem=f"{done} made already in {path}{', and another is begun' if begun else ''}",
            value=wanted,
            allowed=f"at least {made + begun}",
            fix="raise train.epochs, or give another directory with -o or another name",
        )
    if record["status"] == "finished" and (changes := _to_train_on(record, old, recipe)):
        early = f": it stopped early after epoch {made}" if record.get("stopped_early") else ""
        raise CheckpointError(
            field=str(path),
            problem=f"the run is finished{early}",
            fix=f"{' and '.join(changes)} to train on, or give another directory with -o or another name",
        )


def _epochs_made(path: Path, record: Mapping[str, Any]) -> tuple[int, bool]:
    """Return how many epochs a run has made, and whether another is begun, as far as it was saved."""
    if record["status"] == "finished":
        return record["epoch"], False
    for folder in sorted((path / CHECKPOINTS).glob("step-*"), reverse=True):
        # One that can't be read, or was set aside, isn't the one from which training goes on.
        with suppress(CheckpointError, KeyError, TypeError):
            if folder.suffix != ".corrupt":
                progress = storage.read_json(folder / STATE)["progress"]
                return progress["epoch"], progress["position"] > 0
    return 0, False


def _to_train_on(record: Mapping[str, Any], old: Mapping[str, Any], recipe: Mapping[str, Any]) -> list[str]:
    """Return what a recipe must change for a finished run to train on; nothing if it goes on."""
    changes = []
    if recipe["train"]["epochs"] <= record["epoch"]:
        changes.append("raise train.epochs")
    if record.get("stopped_early") and recipe["train"]["early_stopping"] == old["train"]["early_stopping"]:
        changes.append("change train.early_stopping")
    return changes


def saved_anything(path: Path) -> bool:
    """Return whether a run has checkpoints, whole or not: it doesn't begin anew."""
    return any((path / CHECKPOINTS).glob("step-*"))


def _gpu() -> str | None:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
