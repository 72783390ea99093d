"""What is done with a run or an artifact: evaluate, predict, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmdist.errors import DataError, UsageError
from fmdist.stages.modules import Modules, open_task
from fmdist.stages.places import existing, is_artifact, open_trained
from fmdist.stages.recipe import only

if TYPE_CHECKING:
    from fmdist.data.arrays import Arrays
    from fmdist.data.splits import DataSplits, Samples

SPLITS = ("train", "validation", "test")


def evaluate(
    target: Path | str, *, split: str = "test", runtime: str = "openvino", data: Arrays | None = None
) -> dict[str, Any]:
    """Return the scores of a run's best checkpoint, or of an artifact in a runtime, on a split.

    Args:
        target: the folder of a run or an artifact.
        split: ``train``, ``validation`` or ``test``.
        runtime: ``openvino`` or ``onnxruntime``, for an artifact.
        data: for an artifact that was made with arrays, which it doesn't keep: the same arrays.

    Raises:
        DataError: if the data is no longer what it was, or is missing.
    """
    from fmdist.deployment.runtime import RUNTIMES, check_choice

    check_choice("--split", split, SPLITS)
    check_choice("--runtime", runtime, RUNTIMES)
    folder = existing(target)
    if is_artifact(folder):
        return _evaluate_artifact(folder, split, runtime, data)
    from fmdist.training import run as runs
    from fmdist.training.scoring import score_split

    if data is not None:
        raise UsageError(
            field="data", problem="a run is scored on its recipe's data", fix="leave data out, or use split"
        )
    recipe, splits, task = open_trained(folder)
    runs.load_best(folder, task)
    size = recipe.train.evaluation_batch_size
    part = _split(splits, split)
    return score_split(task, part, split, splits.train.plain(), size, recipe.seed)[0]


def predict(
    target: Path | str,
    inputs: Sequence[Path | str] = (),
    *,
    texts: Sequence[str] = (),
    runtime: str = "openvino",
    options: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Return an answer for every input: an image, a row of a table, a text, a prompt, a user.

    Args:
        target: the folder of a run or an artifact; an artifact needs only its runtime and its manifest.
        inputs: files of the kind that the model was trained on.
        texts: inputs given right here, where an input is a text or an identifier.
        runtime: ``openvino`` or ``onnxruntime``, for an artifact.
        options: of the answers, such as ``{"temperature": 0.8}`` where text is generated.

    Returns:
        For each: ``input``, and what `fmdist.tasks.decoding.answer` says.
    """
    from fmdist.data.inputs import read_inputs
    from fmdist.data.preprocess import Preprocess
    from fmdist.deployment.runtime import RUNTIMES, check_choice

    check_choice("--runtime", runtime, RUNTIMES)
    folder, paths = existing(target), [Path(path) for path in inputs]
    if is_artifact(folder):
        from fmdist.deployment.artifact import load

        artifact = load(folder, runtime=runtime)
        names, raw = read_inputs(paths, texts, artifact.preprocess)
        answers = artifact.predict(raw, options)
    else:
        import numpy as np
        import torch

        from fmdist.tasks import decoding
        from fmdist.training import run as runs
        from fmdist.training.evaluation import runner

        signature = runs.read_signature(folder)
        names, raw = read_inputs(paths, texts, preprocess := Preprocess.from_json(signature["preprocessing"]))
        task = open_task(folder)
        run = runner(task, task.roles(), torch.device("cpu"))
        batch = {**preprocess(raw), "index": np.arange(len(raw))}
        answers = decoding.answer(signature["decoding"], run, batch, options)
    return [{"input": name, **answer} for name, answer in zip(names, answers, strict=True)]


def report(target: Path | str) -> Path:
    """Write ``report.html`` into the folder of a run or an artifact and return its path."""
    from fmdist.reports import write

    return write(existing(target))


def _evaluate_artifact(folder: Path, split: str, runtime: str, arrays: Arrays | None) -> dict[str, Any]:
    from fmdist.deployment.artifact import load
    from fmdist.recipe import parsing
    from fmdist.training import run as runs
    from fmdist.training.scoring import gather, score_rows

    artifact = load(folder, runtime=runtime)
    was = artifact.manifest["recipe"]
    needed = only("seed", "task") if "data" not in was else only("seed", "data", "task")
    parsed = parsing.parse({name: was[name] for name in needed}, needed)
    if "data" not in needed and arrays is None:
        raise DataError(
            field=str(folder),
            problem="it was made with arrays of a Python program, and keeps no copy of them",
            fix="score it there: fmdist.evaluate(artifact, data=fmdist.Arrays(...))",
        )
    data = parsed["data"].build(parsed["seed"]) if arrays is None else arrays.build()
    runs.check_data(folder, artifact.manifest["evaluation"]["split_sha256"], data.record["sha256"])
    task = runs.build_task(parsed["task"], parsed["seed"], data.spec, Modules(None))
    part = _split(data, split)
    rows = gather(part, artifact.manifest["decoding"], artifact.outputs)
    scores = score_rows(task, part, split, data.train.plain(), rows, parsed["seed"])
    return {**scores, "runtime": runtime, "variant": artifact.variant}


def _split(data: DataSplits, name: str) -> Samples:
    return {"train": data.train.plain(), "validation": data.validation, "test": data.test}[name]
