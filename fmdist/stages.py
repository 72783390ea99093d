"""The stages of a model's life: composes the recipe's schema from their sections, and is the Python API.

Every verb of the command line is one function here. Each takes a recipe (a path, a mapping, or a `Recipe`) or
the folder that an earlier verb left.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from fmdist import component, storage
from fmdist.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    from fmdist.compression.config import CompressConfig
    from fmdist.contracts import Context, Task
    from fmdist.data.base import DataConfig
    from fmdist.data.splits import DataSplits, Split
    from fmdist.models.base import ModelConfig
    from fmdist.recipe.schema import SectionSpec
    from fmdist.tasks.base import TaskConfig
    from fmdist.training.config import TrainConfig

RUNS, ARTIFACTS = Path("runs"), Path("artifacts")
"""Where runs and artifacts are kept unless told otherwise."""

SPLITS = ("train", "validation", "test")

_RUN, REPORT = "run.json", "report.html"
"""A run's folder holds the one, and `report` writes the other."""

logger = logging.getLogger(__name__)


@functools.cache
def sections() -> dict[str, SectionSpec]:
    """Return the recipe's top-level keys, each owned by its stage; an artifact answers without them."""
    from pydantic import Field

    from fmdist.compression.config import CompressConfig
    from fmdist.recipe.schema import Plugin, SectionSpec
    from fmdist.training.config import TrainConfig

    return {
        "name": SectionSpec(
            Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")],
            summary="Names the run's folder, runs/<name>.",
        ),
        "seed": SectionSpec(
            Annotated[int, Field(ge=0, lt=2**63)],
            default=0,
            summary="Keys the split, the weights and every draw.",
        ),
        "data": SectionSpec(Plugin("data"), summary="What to learn from."),
        "model": SectionSpec(Plugin("models"), summary="The architecture; its sizes follow from the data."),
        "task": SectionSpec(Plugin("tasks"), summary="What is learned."),
        "train": SectionSpec(TrainConfig, default={}, summary="How it is trained."),
        "compress": SectionSpec(
            CompressConfig, default=None, summary="How the trained model is made smaller."
        ),
    }


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
        from fmdist.recipe.resolved import to_plain

        return to_plain({field.name: getattr(self, field.name) for field in fields(self)})


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


def load_recipe(source: Path | str | Mapping[str, Any] | Recipe, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a YAML file or a mapping, with overrides such as ``train.lr=1e-3`` applied.

    Raises:
        UsageError: if there is no such file.
        RecipeError: every mistake of the recipe at once.
        DependencyMissing: if only extras are missing.
    """
    from fmdist.recipe import overrides as override
    from fmdist.recipe import parsing, reader

    if isinstance(source, Path | str):
        return Recipe(**parsing.load(Path(source), overrides, sections()))
    plain = source.plain if isinstance(source, Recipe) else source
    raw = override.apply(reader.Raw(dict(plain), {}), overrides)
    return Recipe(**parsing.parse(raw.values, sections(), raw.lines))


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
    from fmdist.training.engine import check_here
    from fmdist.training.scoring import score_split, write_scores
    from fmdist.training.session import train_run

    loaded = load_recipe(recipe, overrides)
    plain = loaded.plain
    folder = output or RUNS / loaded.name
    check_here(loaded.train, context := context or Context())
    with runs.open_run(folder, plain) as run:
        data = loaded.data.build(loaded.seed, quarantine=folder / "quarantine.jsonl")
        task = runs.build_task(loaded.task, loaded.seed, data.spec, loaded.model)
        runs.begin(run, plain, runs.signature(task, data), data.record)
        progress = train_run(run, task, data, loaded.train, loaded.seed, context, profile)
        saved = runs.load_best(folder, task)
        record, outputs = score_split(
            task, data.test, "test", data.train.targets, loaded.train.evaluation_batch_size, loaded.seed
        )
        write_scores(folder / "evaluation", record, outputs, data.test)
        run.write("finished", runs.summary(progress, task) | {"best_step": saved.step})
    low, high = record["interval"]
    return Trained(folder, record["metrics"], record["baseline"], record["primary"], (low, high))


def compress(
    run: Path | str,
    *,
    quantize: str | None = None,
    max_drop: float | None = None,
    output: Path | None = None,
) -> Path:
    """Turn a run's best checkpoint into a verified artifact with a report; return the artifact's folder.

    Args:
        run: the run's folder.
        quantize: ``int8`` adds the ``quantize`` pass if the recipe's ``compress`` section has none.
        max_drop: overrides the recipe's; in units of the primary metric.
        output: the artifact's folder, by default ``artifacts/<name of the run's folder>``.

    Raises:
        CompressionError: if a pass changed nothing, the artifact doesn't match, or the drop is too large.
    """
    component.require("compress", needed_by="fmdist compress")
    from fmdist.compression.pipeline import compress as make_artifact
    from fmdist.compression.subject import Subject
    from fmdist.training import run as runs
    from fmdist.training.checkpoint import weights_digest

    folder = Path(run)
    config = compress_config(load_recipe(runs.recipe_path(folder)), quantize, max_drop)
    recipe, data, task = _open(folder)
    saved = runs.load_best(folder, task)
    subject = Subject(
        name=recipe.name,
        task=task,
        exports=recipe.model.exports(task.roles(), data.spec),
        splits=data,
        recipe={**recipe.plain, "compress": config.model_dump(mode="json")},
        source=f"{folder}/{saved.path.name}",
        fingerprint=weights_digest(task.roles()["model"]),
        run=runs.read_run(folder)["created"],
    )
    target = output or ARTIFACTS / folder.name
    make_artifact(subject, config, target)
    report(target)
    runs.note(folder, {"artifact": os.path.relpath(target, folder)})
    if (folder / REPORT).exists():
        report(folder)  # it gains the artifact's section
    return target


def compress_config(recipe: Recipe, quantize: str | None, max_drop: float | None) -> CompressConfig:
    """Return a recipe's ``compress`` section with the command line's wishes in it."""
    from fmdist.recipe import parsing

    plain = recipe.plain.get("compress") or {"passes": []}
    if quantize is not None:
        if quantize != "int8":
            raise UsageError(field="--quantize", problem="no such precision", value=quantize, allowed="int8")
        if not any(item["kind"] == "quantize" for item in plain["passes"]):
            plain["passes"] = [*plain["passes"], {"kind": "quantize"}]
    if max_drop is not None:
        plain["max_drop"] = max_drop
    config: CompressConfig = parsing.parse({"compress": plain}, _only("compress"))["compress"]
    return config


def evaluate(target: Path | str, *, split: str = "test", runtime: str = "openvino") -> dict[str, Any]:
    """Return the scores of a run's best checkpoint, or of an artifact in a runtime, on a split.

    Args:
        target: the folder of a run or an artifact.
        split: ``train``, ``validation`` or ``test``.
        runtime: ``openvino`` or ``onnxruntime``, for an artifact.

    Raises:
        DataError: if the recipe's data is no longer what it was.
    """
    from fmdist.deployment.runtime import RUNTIMES, check_choice

    check_choice("--split", split, SPLITS)
    check_choice("--runtime", runtime, RUNTIMES)
    folder = _existing(target)
    if is_artifact(folder):
        return _evaluate_artifact(folder, split, runtime)
    from fmdist.training import run as runs
    from fmdist.training.scoring import score_split

    recipe, data, task = _open(folder)
    runs.load_best(folder, task)
    size = recipe.train.evaluation_batch_size
    return score_split(task, _split(data, split), split, data.train.targets, size, recipe.seed)[0]


def predict(
    target: Path | str, inputs: Sequence[Path | str], *, runtime: str = "openvino"
) -> list[dict[str, Any]]:
    """Return an answer for every image, and for every row of a CSV or Parquet file.

    Args:
        target: the folder of a run or an artifact; an artifact needs only its runtime and its manifest.
        inputs: files of the kind that the model was trained on.
        runtime: ``openvino`` or ``onnxruntime``, for an artifact.

    Returns:
        For each: ``input``, and what `fmdist.tasks.decoding.decode` says.
    """
    from fmdist.data.inputs import read_inputs
    from fmdist.data.preprocess import Preprocess
    from fmdist.deployment.runtime import RUNTIMES, check_choice
    from fmdist.tasks.decoding import decode

    check_choice("--runtime", runtime, RUNTIMES)
    folder, paths = _existing(target), [Path(path) for path in inputs]
    if is_artifact(folder):
        from fmdist.deployment.artifact import load

        artifact = load(folder, runtime=runtime)
        names, raw = read_inputs(paths, artifact.preprocess)
        answers = artifact.predict(raw)
    else:
        from fmdist.contracts import DataSpec
        from fmdist.training import run as runs
        from fmdist.training.evaluation import run_model

        recipe = load_recipe(runs.recipe_path(folder))
        signature = storage.read_json(folder / runs.SIGNATURE)
        names, raw = read_inputs(paths, preprocess := Preprocess.from_json(signature["preprocessing"]))
        task = runs.build_task(recipe.task, recipe.seed, DataSpec.from_json(signature["spec"]), recipe.model)
        runs.load_best(folder, task)
        answers = decode(signature["decoding"], run_model(task, preprocess.input.name, preprocess(raw)))
    return [{"input": name, **answer} for name, answer in zip(names, answers, strict=True)]


def report(target: Path | str) -> Path:
    """Write ``report.html`` into the folder of a run or an artifact and return its path."""
    from fmdist.reports import write

    return write(_existing(target))


@dataclass(frozen=True)
class Life:
    """What `run` leaves."""

    folder: Path
    artifact: Path | None
    """None if the recipe has no ``compress`` section."""
    report: Path


def run(
    recipe: Path | str | Mapping[str, Any] | Recipe,
    *,
    output: Path | None = None,
    overrides: Sequence[str] = (),
    profile: bool = False,
) -> Life:
    """Do every stage that a recipe has: train, compress and verify, report. Finished stages are not repeated.

    Args:
        recipe: a path, a mapping or a `Recipe`.
        output: the run's folder, by default ``runs/<name>``; the artifact is ``artifacts/<its name>``.
        overrides: such as ``train.lr=1e-3``.
        profile: see `train`.
    """
    from fmdist.training import run as runs

    loaded = load_recipe(recipe, overrides)
    folder = output or RUNS / loaded.name
    if runs.is_finished(folder, loaded.plain):
        logger.info("%s is trained already", folder)
        runs.update_recipe(folder, loaded.plain)
    else:
        train(loaded, output=folder, profile=profile)
    artifact = None if loaded.compress is None else compress(folder)
    return Life(folder, artifact, report(folder))


def is_artifact(folder: Path) -> bool:
    """Return whether a folder holds an artifact (and not a run)."""
    return (folder / storage.MANIFEST).is_file()


def _existing(target: Path | str) -> Path:
    """Return the folder of a run or an artifact; the error for another says which name is meant."""
    folder = Path(target)
    if is_artifact(folder) or (folder / _RUN).is_file():
        return folder
    marks = (_RUN, storage.MANIFEST)
    known = sorted({path.parent.name for mark in marks for path in folder.parent.glob(f"*/{mark}")})
    problem = "neither a run nor a finished artifact" if folder.exists() else "no such run or artifact"
    raise UsageError(
        field=str(folder), problem=problem, allowed=", ".join(known), fix=did_you_mean(folder.name, known)
    )


def _only(*names: str) -> dict[str, SectionSpec]:
    return {name: sections()[name] for name in names}


def _evaluate_artifact(folder: Path, split: str, runtime: str) -> dict[str, Any]:
    from fmdist.deployment.artifact import load
    from fmdist.recipe import parsing
    from fmdist.training import run as runs
    from fmdist.training.scoring import NoModel, gather, score_outputs

    artifact = load(folder, runtime=runtime)
    was = artifact.manifest["recipe"]
    needed = _only("seed", "data", "task")
    parsed = parsing.parse({name: was[name] for name in needed}, needed)
    data = parsed["data"].build(parsed["seed"])
    runs.check_data(folder, artifact.manifest["evaluation"]["split_sha256"], data.record["sha256"])
    task = runs.build_task(parsed["task"], parsed["seed"], data.spec, NoModel())
    part = _split(data, split)
    outputs = gather(part, artifact.outputs)
    scores = score_outputs(task, part, split, data.train.targets, outputs, parsed["seed"])
    return {**scores, "runtime": runtime, "variant": artifact.variant}


def _open(folder: Path) -> tuple[Recipe, DataSplits, Task]:
    """Return a run's recipe, its data as it was, and its task in the initial state."""
    from fmdist.training import run as runs

    recipe = load_recipe(runs.recipe_path(folder))
    data = recipe.data.build(recipe.seed)
    runs.check_data(folder, storage.read_json(folder / runs.DATA)["sha256"], data.record["sha256"])
    return recipe, data, runs.build_task(recipe.task, recipe.seed, data.spec, recipe.model)


def _split(data: DataSplits, name: str) -> Split:
    return {"train": data.train.plain(), "validation": data.validation, "test": data.test}[name]
