"""The two trained models that `benchmarks.compression` is about, and the files that every peer gets."""

from __future__ import annotations

from contextlib import chdir
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from benchmarks.families import make_data
from benchmarks.harness import ROOT
from fmdist import stages
from fmdist.compression.child import save_module
from fmdist.compression.export import export_models, frozen
from fmdist.compression.subject import Subject, batch_of, calibration_rows
from fmdist.stages.places import open_trained
from fmdist.tasks import decoding
from fmdist.training import run as runs
from fmdist.training.checkpoint import weights_digest

CALIBRATION = 300
"""Training samples that every side calibrates on: those that fmdist draws."""
DRAWS = 5
"""Sets of as many: with one alone, the accuracies of models that are equally good differ by some samples."""
QUICK = 30
"""As many in a quick run."""


@dataclass(frozen=True)
class Case:
    """One subject."""

    recipe: str
    """Its file, from the top of the repository."""
    timed: tuple[int, ...]
    """Shape of the one sample whose latency is measured."""
    smaller: float
    """Bar: how many times fewer bytes than the original the whole pipeline's artifact has."""
    faster: float
    """Bar: how many times shorter its latency is than eager torch's."""
    overrides: tuple[str, ...] = field(default=("train.threads=1",))


CASES = {
    "resnet18": Case("recipes/digits_resnet18.yaml", (1, 1, 224, 224), smaller=12, faster=8),
    "bert": Case("benchmarks/compression_peers/text_bert_small.yaml", (1, 128), smaller=6, faster=4),
}


@dataclass(frozen=True)
class Files:
    """What `prepare` wrote; see `benchmarks.compression_peers.job.Job` for the first ones."""

    module: str
    onnx: str
    openvino: str
    input: str
    calibration: str
    test: str
    timed: str
    targets: str
    """Classes (N,) int64 of the test samples, .npy."""
    weights: str
    """The module's, as safetensors: what the original's size is taken from."""


def train(case: Case, folder: Path, quick: bool) -> Path:
    """Return the finished run ``folder/run``, trained unless it is already there."""
    text = (ROOT / case.recipe).read_text(encoding="utf-8")
    folder.mkdir(parents=True, exist_ok=True)
    make_data(text, folder)
    overrides = [*case.overrides, *(["train.epochs=1", "train.warmup_epochs=0"] if quick else [])]
    recipe = stages.load_recipe(ROOT / case.recipe, overrides)
    run = folder / "run"
    # The recipe's data lies where its header's Python was run.
    with chdir(folder):
        if not runs.is_finished(run, recipe.plain):
            stages.train(recipe.plain, output=run)
    return run


def open_subject(run: Path) -> Subject:
    """Return a finished run's best checkpoint as fmdist compresses it; the current folder is its data's."""
    recipe, data, task = open_trained(run)
    runs.load_best(run, task)
    served = task.served(task.roles())
    return Subject(
        name=recipe.name,
        task=task,
        export=recipe.model.export(served, task.inputs),
        splits=data,
        recipe=recipe.plain,
        source=str(run),
        fingerprint=weights_digest(served),
        run=runs.read_run(run)["created"],
    )


def prepare(case: Case, run: Path, folder: Path, quick: bool) -> Files:
    """Write the module, its float32 exports and the samples into ``folder``, where its data is."""
    with chdir(folder):
        subject = open_subject(run)
    spec, splits, rule = subject.export, subject.splits, subject.task.decoding()
    (name,) = spec.input_names
    files = Files(
        **{key: str(folder / f"{key}.npy") for key in ("calibration", "test", "timed", "targets")},
        module=str(folder / "module.pt"),
        weights=str(folder / "module.safetensors"),
        onnx=str(folder / "fp32.onnx"),
        openvino=str(folder / "fp32.xml"),
        input=name,
    )
    scratch = folder / "export"
    scratch.mkdir(exist_ok=True)
    export_models(spec, {"onnxruntime": Path(files.onnx), "openvino": Path(files.openvino)}, scratch)
    module = frozen(spec.module)
    save_module(module, Path(files.module))
    state = {key: value.clone().contiguous() for key, value in module.state_dict().items()}
    save_file(state, files.weights)
    for draw in range(DRAWS):
        size = QUICK if quick else CALIBRATION
        chosen = calibration_rows(splits.train.targets, size, subject.seed + draw)
        drawn = decoding.feed(rule, batch_of(splits.train.plain(), chosen))[name]
        np.save(calibration(files, draw), drawn)
    scored = np.arange(len(splits.test))[: 100 if quick else None]
    rows = batch_of(splits.test, scored)[name]
    # Texts get the length that is timed: one program then serves torch's peers for both.
    np.save(files.test, _padded(rows, case.timed[1]) if rows.ndim == 2 else rows)
    np.save(files.targets, splits.test.targets[scored])
    np.save(files.timed, _sample(case.timed, splits.spec.inputs[0].size))
    return files


def calibration(files: Files, draw: int) -> str:
    """Return the file of one of the sets of calibration samples; the first is `Files.calibration`."""
    first = Path(files.calibration)
    return str(first.with_stem(f"{first.stem}-{draw}")) if draw else str(first)


def _sample(shape: tuple[int, ...], vocabulary: int) -> NDArray[Any]:
    generator = torch.Generator().manual_seed(0)
    if vocabulary:
        return torch.randint(1, vocabulary, shape, generator=generator).numpy()
    return torch.randn(shape, generator=generator).numpy()


def _padded(rows_NT: NDArray[Any], length: int) -> NDArray[Any]:
    return np.pad(rows_NT, ((0, 0), (0, length - rows_NT.shape[1])))
