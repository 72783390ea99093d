"""Test images with what the model said about them.

Shapes: M images, C channels, H height, W width, K classes or labels.
"""

from __future__ import annotations

import base64
import io

import matplotlib.image
import numpy as np
from numpy.typing import NDArray

from fmdist.reports.layout import Block, Example, Gallery, Note

SHOWN = 16
"""Examples per gallery."""
LARGEST_SIDE = 96
"""Larger images are reduced to about this many pixels, or they would make up most of the report."""


def gallery(
    images_MCHW: NDArray[np.uint8],
    names: tuple[str, ...],
    chosen_MK: NDArray[np.bool_],
    truth_MK: NDArray[np.bool_],
    confidence_M: NDArray[np.float64],
) -> list[Block]:
    """Return the mistakes, the most confident first, and some of the right answers."""

    def example(i: int) -> Example:
        truth = "" if right[i] else f"true: {_spell(names, truth_MK[i])} · "
        note = f"{truth}{confidence_M[i]:.1%}"
        return Example(data_uri(images_MCHW[i]), _spell(names, chosen_MK[i]), note, bool(right[i]))

    right = (chosen_MK == truth_MK).all(axis=1)
    mistakes = [i for i in np.argsort(-confidence_M, kind="stable").tolist() if not right[i]]
    blocks: list[Block] = []
    if mistakes:
        shown = mistakes[:SHOWN]
        caption = f"{len(shown)} of {len(mistakes):,} mistakes among {len(right):,} kept test images."
        heading = "Wrong, the most confident first"
        blocks.append(Gallery(heading, tuple(example(i) for i in shown), caption))
    else:
        blocks.append(Note(f"None of the {len(right):,} kept test images is classified wrong."))
    if right.any():
        correct = np.flatnonzero(right)
        spread = np.unique(np.linspace(0, len(correct) - 1, SHOWN).astype(int))
        caption = (
            f"{len(spread)} of {len(correct):,} right answers among the kept images, evenly drawn from them."
        )
        blocks.append(Gallery("Right", tuple(example(i) for i in correct[spread].tolist()), caption))
    return blocks


def data_uri(image_CHW: NDArray[np.uint8]) -> str:
    """Return an image as a PNG data URI: the first three channels as colours, or the first one as grey."""
    channels = image_CHW[:3] if len(image_CHW) >= 3 else image_CHW[:1].repeat(3, axis=0)
    factor = -(-max(channels.shape[1:]) // LARGEST_SIDE)
    rows, columns = (max(1, side // factor) for side in channels.shape[1:])
    trimmed = channels[:, : rows * factor, : columns * factor]
    blocks = trimmed.reshape(3, rows, trimmed.shape[1] // rows, columns, trimmed.shape[2] // columns)
    pixels = blocks.mean(axis=(2, 4)).round().astype(np.uint8).transpose(1, 2, 0)
    buffer = io.BytesIO()
    matplotlib.image.imsave(
        buffer, np.ascontiguousarray(pixels), format="png", metadata={"Software": "fmdist"}
    )
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _spell(names: tuple[str, ...], marked_K: NDArray[np.bool_]) -> str:
    return ", ".join(name for name, marked in zip(names, marked_K, strict=True) if marked) or "none"
