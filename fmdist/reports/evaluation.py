"""The sections about a test split: metrics, confusions, scores per class, residuals.

Shapes: N samples, K outputs (classes, labels or targets of a regression).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmdist.errors import CheckpointError
from fmdist.reports import files, plots
from fmdist.reports.examples import gallery
from fmdist.reports.layout import (
    LISTED,
    Block,
    Cell,
    Figure,
    Figures,
    Matrix,
    Note,
    Section,
    Table,
    interval,
    number,
    words,
)
from fmdist.tasks.decoding.direct import sigmoid, softmax

MATRIX_CLASSES = 40
"""A confusion matrix of more classes can't be read; the most frequent confusions are listed instead."""
SCATTER_POINTS = 500
TARGETS_DRAWN = 6


@dataclass(frozen=True)
class Evaluation:
    """What was recorded about the test split."""

    record: dict[str, Any]
    """``test.json``: metrics, primary, interval, baseline, target."""
    arrays: dict[str, NDArray[Any]] | None
    """``outputs`` (N, K), ``target`` (N,) or (N, K), ``index`` (N,)."""
    examples: dict[str, NDArray[Any]] | None
    """``image`` (M, C, H, W) uint8 and ``index`` (M,), positions in the split."""
    threshold: float
    """For labels: the probability from which one is given."""

    @property
    def kind(self) -> str:
        """Return what is predicted: ``class``, ``labels`` or ``value``."""
        return str(self.record["target"]["kind"])

    @property
    def direct(self) -> bool:
        """Return whether the rows are the model's outputs, one per name."""
        return bool(self.record["rule"] == self.kind)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the K names of the classes, labels or targets."""
        return tuple(str(name) for name in self.record["target"]["names"])


def read(run: Path) -> Evaluation | None:
    """Return what a run's ``evaluation/`` holds, or None.

    Raises:
        CheckpointError: if a file is broken or the outputs don't fit the target's names.
    """
    folder = run / "evaluation"
    record = files.mapping(folder / "test.json")
    if record is None:
        return None
    signature = files.mapping(run / "signature.json") or {"decoding": {}}
    evaluation = Evaluation(
        record,
        files.arrays(folder / "test.npz"),
        files.arrays(folder / "examples.npz"),
        signature["decoding"].get("threshold", 0.5),
    )
    if evaluation.arrays is not None and evaluation.direct:
        _check(folder, evaluation, evaluation.arrays)
    return evaluation


def _check(folder: Path, evaluation: Evaluation, arrays: dict[str, NDArray[Any]]) -> None:
    rows = len(arrays["target"])
    if arrays["outputs"].shape != (rows, len(evaluation.names)):
        raise CheckpointError(
            field=str(folder / "test.npz"),
            problem="the outputs don't fit the targets and their names in test.json",
            value=arrays["outputs"].shape,
            allowed=str((rows, len(evaluation.names))),
        )
    kept = evaluation.examples["index"] if evaluation.examples is not None else arrays["index"]
    if len(kept) and not 0 <= kept.min() <= kept.max() < rows:
        raise CheckpointError(
            field=str(folder / "examples.npz"),
            problem="examples of another test split",
            value=int(kept.max()),
            allowed=f"positions 0 to {rows - 1}",
        )


def sections(evaluation: Evaluation, validation: dict[str, float]) -> list[Section]:
    """Return the sections for what was recorded; ``validation`` holds the kept checkpoint's metrics."""
    found = [Section("Test", tuple(_metrics(evaluation.record, validation)))]
    if evaluation.arrays is None or len(evaluation.arrays["outputs"]) == 0 or not evaluation.direct:
        return found
    outputs, target = evaluation.arrays["outputs"], evaluation.arrays["target"]
    if evaluation.kind == "value":
        return [*found, Section("Predictions", tuple(_residuals(evaluation.names, outputs, target)))]
    chosen, truth = _decisions(evaluation)
    confusion = _confusion(evaluation.names, outputs, target) if evaluation.kind == "class" else []
    scores = _per_class(evaluation.names, chosen, truth)
    title = "Classes" if evaluation.kind == "class" else "Labels"
    found.append(Section(title, (*confusion, scores), side_by_side=True))
    if evaluation.examples is not None:
        kept = evaluation.examples["index"]
        confidence = _confidence(evaluation.kind, outputs, chosen, truth)[kept]
        blocks = gallery(
            evaluation.examples["image"], evaluation.names, chosen[kept], truth[kept], confidence
        )
        found.append(Section("Examples", tuple(blocks)))
    return found


def better(value: float, other: float, mode: str) -> bool:
    """Return whether ``value`` beats ``other`` under the mode ``max`` or ``min``."""
    return value > other if mode == "max" else value < other


def _metrics(record: dict[str, Any], validation: dict[str, float]) -> list[Block]:
    primary, mode, baseline = record["primary"], record["mode"], record.get("baseline", {})
    bounds = record.get("interval")
    rows = tuple(
        (
            words(name) + (" (primary)" if name == primary else ""),
            number(value),
            interval(bounds) if name == primary else "",
            number(baseline.get(name)),
            number(validation.get(name)),
        )
        for name, value in sorted(record["metrics"].items(), key=lambda item: item[0] != primary)
    )
    caption = (
        f"On {record['size']:,} test samples, which neither training nor the choice of the checkpoint uses. "
        "The baseline is a trivial predictor that knows only the training targets. The checkpoint was chosen "
        "by its validation metrics, which makes them optimistic on average."
    )
    table = Table(("metric", "test", "95% interval", "baseline", "validation"), rows, caption)
    if bounds is None or baseline.get(primary) is None:
        return [table]
    edge = bounds[0] if mode == "max" else bounds[1]
    text = (
        f"The 95% interval of {words(primary)} is {interval(bounds)}, "
        f"the baseline {number(baseline[primary])}: "
    )
    if better(edge, baseline[primary], mode):
        return [Note(text + "the model is better over the whole interval.", "good"), table]
    return [Note(text + "the interval does not rule the baseline out.", "warning"), table]


def _decisions(evaluation: Evaluation) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which names were predicted and which are true, (N, K) each."""
    assert evaluation.arrays is not None
    outputs, target = evaluation.arrays["outputs"], evaluation.arrays["target"]
    if evaluation.kind == "labels":
        return sigmoid(outputs) >= evaluation.threshold, target > 0.5
    every = np.arange(len(evaluation.names))
    return outputs.argmax(axis=1)[:, None] == every, target[:, None] == every


def _confidence(
    kind: str, outputs: NDArray[Any], chosen: NDArray[np.bool_], truth: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the probability of each sample's answer (N,); of several labels, that of the worst mistake.

    Where all labels are right it is the probability of the least certain of them.
    """
    if kind == "class":
        return np.asarray(softmax(outputs).max(axis=1), dtype=np.float64)
    probabilities = sigmoid(outputs)
    certain = np.where(chosen, probabilities, 1 - probabilities)
    wrong = chosen != truth
    answer = np.where(wrong.any(axis=1), np.where(wrong, certain, 0).max(axis=1), certain.min(axis=1))
    return np.asarray(answer, dtype=np.float64)


def _confusion(names: tuple[str, ...], outputs: NDArray[Any], target: NDArray[Any]) -> list[Block]:
    predicted, classes = outputs.argmax(axis=1), len(names)
    counts = np.bincount(target * classes + predicted, minlength=classes**2).reshape(classes, classes)
    wrong = int((predicted != target).sum())
    certainty = float(softmax(outputs).max(axis=1).mean())
    summary = Note(
        f"Classified wrong: {wrong:,} of {len(target):,} test samples. The predicted class has a mean "
        f"probability of {certainty:.4f}; {1 - wrong / len(target):.4f} of the predictions are right."
    )
    if classes <= MATRIX_CLASSES:
        return [summary, _matrix(names, counts)]
    return [summary, _top_confusions(names, counts)] if wrong else [summary]


def _matrix(names: tuple[str, ...], counts: NDArray[np.int64]) -> Matrix:
    shares = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    rows = tuple(
        tuple(
            Cell(
                str(count) if count else "",
                # The faintest error still has to be seen.
                max(12, round(float(shares[i, j]))) if count else 0,
                "right" if i == j else "wrong",
                f"true {names[i]}, predicted {names[j]}: {count} ({shares[i, j]:.1f}%)",
            )
            for j, count in enumerate(row)
        )
        for i, row in enumerate(counts.tolist())
    )
    caption = (
        "Test samples by true class (rows) and predicted class (columns); the colour is the share of the "
        "row. Everything off the diagonal is a mistake."
    )
    return Matrix(names, rows, caption)


def _top_confusions(names: tuple[str, ...], counts: NDArray[np.int64]) -> Table:
    mistakes = counts * ~np.eye(len(names), dtype=bool)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:LISTED]
    pairs = [divmod(int(flat), len(names)) for flat in order if mistakes.flat[flat]]
    rows = tuple(
        (names[i], names[j], f"{mistakes[i, j]:,}", f"{100 * mistakes[i, j] / counts[i].sum():.1f}%")
        for i, j in pairs
    )
    caption = f"The {len(rows)} most frequent confusions, and their share of the true class's test samples."
    return Table(("true class", "predicted as", "samples", "share"), rows, caption, text_columns=2)


def _per_class(names: tuple[str, ...], chosen: NDArray[np.bool_], truth: NDArray[np.bool_]) -> Table:
    """Return precision, recall and F1 per name; a ratio over nothing is left blank, not called zero."""
    hits, claimed, present = (chosen & truth).sum(0), chosen.sum(0), truth.sum(0)
    precision, recall, f1 = _ratio(hits, claimed), _ratio(hits, present), _ratio(2 * hits, claimed + present)
    order = (
        np.argsort(np.nan_to_num(f1, nan=2.0), kind="stable")[:LISTED]
        if len(names) > LISTED
        else range(len(names))
    )
    rows = tuple(
        (
            names[k],
            _score(precision[k]),
            _score(recall[k]),
            _score(f1[k]),
            f"{claimed[k]:,}",
            f"{present[k]:,}",
        )
        for k in order
    )
    caption = "On the test split. Small classes have wide error bars: see the number of samples."
    if len(names) > LISTED:
        caption = f"The {LISTED} of {len(names):,} classes with the lowest F1. {caption}"
    return Table(("name", "precision", "recall", "F1", "predicted", "samples"), rows, caption)


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    ratio = np.full(len(whole), np.nan)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio


def _score(value: float) -> str:
    return number(None) if np.isnan(value) else f"{value:.3f}"


def _residuals(names: tuple[str, ...], outputs: NDArray[Any], target: NDArray[Any]) -> list[Block]:
    every, true = outputs.astype(np.float64), target.reshape(outputs.shape).astype(np.float64)
    finite = np.isfinite(every).all(axis=1)
    predicted, true = every[finite], true[finite]
    blocks: list[Block] = []
    if not finite.all():
        text = (
            f"{int((~finite).sum()):,} of {len(every):,} predictions are not finite; they are left out here."
        )
        blocks.append(Note(text, "warning"))
    if finite.any():
        drawn = [
            figure
            for k, name in enumerate(names[:TARGETS_DRAWN])
            for figure in _residual_figures(name, predicted[:, k], true[:, k])
        ]
        blocks.append(Figures(tuple(drawn)))
    if len(names) > TARGETS_DRAWN:
        blocks.append(Note(f"The first {TARGETS_DRAWN} of {len(names):,} targets are drawn."))
    return blocks


def _residual_figures(
    name: str, predicted: NDArray[np.float64], true: NDArray[np.float64]
) -> tuple[Figure, Figure]:
    size = len(true)
    shown = np.unique(np.linspace(0, size - 1, SCATTER_POINTS).astype(int))
    residual = predicted - true
    sampled = "" if len(shown) == size else f" {len(shown):,} of {size:,} samples are drawn."
    return (
        Figure(
            f"{name}: predicted and true",
            plots.scatter(true[shown], predicted[shown]),
            f"Each point is a test sample; on the dotted line the prediction is exact.{sampled}",
        ),
        Figure(
            f"{name}: residuals",
            plots.histogram(residual, "predicted minus true"),
            f"Mean {number(float(residual.mean()))} (bias), standard deviation "
            f"{number(float(residual.std()))}; the target's own is {number(float(true.std()))}.",
        ),
    )
