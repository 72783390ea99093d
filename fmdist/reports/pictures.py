"""The section of what a generative model made: reconstructions beside their inputs, and images drawn from it.

Shapes: N samples, M images, C channels, H height, W width, D = C H W.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmdist.reports import files
from fmdist.reports.evaluation import Evaluation
from fmdist.reports.examples import SHOWN, data_uri
from fmdist.reports.layout import Block, Example, Gallery, Section, number

DRAWN = 64
"""Images drawn from a model that are shown."""

_SCORES = {"reconstruct": 2, "elbo": 3}
"""Numbers in a row before the reconstruction; see `fmdist.tasks.decoding.reconstruction`."""


def sections(run: Path, evaluation: Evaluation) -> list[Section]:
    """Return the section of pictures of a run, if its model makes images; else an empty list."""
    signature = files.mapping(run / "signature.json")
    if signature is None or evaluation.arrays is None:
        return []
    rule = signature["decoding"]
    if rule.get("rule") not in (*_SCORES, "images") or signature["preprocessing"]["kind"] != "image":
        return []
    preprocessing = signature["preprocessing"]
    rows, size = evaluation.arrays["outputs"], math.prod(rule["shape"])
    blocks: list[Block] = []
    if rule["rule"] == "images":
        drawn_ND = rows[:, : rows.shape[1] - size].reshape(-1, size)
        blocks.append(_drawn(_pixels(drawn_ND[:DRAWN], rule["shape"], preprocessing)))
    else:
        first = _SCORES[rule["rule"]]
        if evaluation.examples is not None:
            kept = evaluation.examples["index"]
            again = _pixels(rows[kept, first : first + size], rule["shape"], preprocessing)
            blocks += _reconstructions(rule["rule"], evaluation.examples["image"], again, rows[kept])
        if rule["rule"] == "elbo":
            blocks.append(_drawn(_pixels(rows[:DRAWN, first + size :], rule["shape"], preprocessing)))
    return [Section("Pictures", tuple(blocks))]


def _reconstructions(
    rule: str, images_MCHW: NDArray[np.uint8], again_MCHW: NDArray[np.uint8], rows: NDArray[Any]
) -> list[Block]:
    """Return two galleries; of the recorded examples the first half are the worst."""

    def example(place: int) -> Example:
        pair = np.concatenate([images_MCHW[place], again_MCHW[place]], axis=2)
        row = rows[place]
        text = (
            f"MSE {number(float(row[0]))}" if rule == "reconstruct" else f"ELBO {float(row[0] - row[1]):.2f}"
        )
        return Example(data_uri(pair), text, "", True)

    half = -(-len(rows) // 2)
    others = np.unique(np.linspace(half, len(rows) - 1, min(SHOWN, len(rows) - half)).astype(int)).tolist()
    caption = "Test images, each with its reconstruction to the right of it."
    return [
        Gallery("The worst reconstructions", tuple(map(example, range(min(SHOWN, half)))), caption),
        Gallery("Reconstructions, evenly drawn from the others", tuple(map(example, others)), caption),
    ]


def _drawn(images_MCHW: NDArray[np.uint8]) -> Gallery:
    items = tuple(Example(data_uri(image), f"{n + 1}", "", True) for n, image in enumerate(images_MCHW))
    return Gallery("Drawn from the model", items, "Not chosen: the first of the evaluation.")


def _pixels(
    values_MD: NDArray[np.float32], shape: list[int], preprocessing: dict[str, Any]
) -> NDArray[np.uint8]:
    """Return images (M, C, H, W) of values in the units of the model's inputs."""
    mean = np.array(preprocessing["mean"]).reshape(-1, 1, 1)
    std = np.array(preprocessing["std"]).reshape(-1, 1, 1)
    pixels = values_MD.reshape(-1, *shape) * std + mean
    return np.asarray((255 * pixels).round().clip(0, 255), np.uint8)
