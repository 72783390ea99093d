"""Which pictures a report shows of what a generative model made."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from numpy.typing import NDArray

from fmdist.reports import pictures
from fmdist.reports.evaluation import Evaluation
from fmdist.reports.layout import Gallery

SHAPE = (1, 4, 4)
TESTED = 51
MEAN, STD = 0.5, 0.25


def evaluation(rows: NDArray[np.float32], kept: NDArray[np.int64] | None = None) -> Evaluation:
    arrays: dict[str, NDArray[Any]] = {
        "outputs": rows,
        "target": np.zeros(len(rows)),
        "index": np.arange(len(rows)),
    }
    examples: dict[str, NDArray[Any]] | None = None
    if kept is not None:
        grey = np.full((len(kept), *SHAPE), 255, np.uint8)
        examples = {"image": grey, "index": kept}
    return Evaluation({"rule": "elbo", "target": {"kind": "class", "names": []}}, arrays, examples, 0.5)


def signature(folder: Path, rule: str, kind: str = "image") -> Path:
    decoding = {"rule": rule, "shape": list(SHAPE)}
    preprocessing = {"kind": kind, "mean": [MEAN], "std": [STD]}
    text = json.dumps({"decoding": decoding, "preprocessing": preprocessing})
    (folder / "signature.json").write_text(text)
    return folder


def pixels(uri: str) -> NDArray[Any]:
    """Return a data URI's grey values in [0, 255], (H, W)."""
    image = matplotlib.image.imread(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    return np.asarray(255 * image[..., 0]).round()


def galleries(folder: Path, found: Evaluation) -> list[Gallery]:
    (section,) = pictures.sections(folder, found)
    assert section.title == "Pictures"
    return [block for block in section.blocks if isinstance(block, Gallery)]


@pytest.mark.parametrize(("rule", "scores"), [("reconstruct", 2), ("elbo", 3)])
def test_reconstructions_stand_beside_their_inputs_in_pixels(tmp_path: Path, rule: str, scores: int) -> None:
    rows = np.zeros((TESTED, scores + 16 * (scores - 1)), np.float32)
    # In standard deviations: sample i is at i / 51 of white.
    rows[:, scores : scores + 16] = ((np.arange(TESTED) / TESTED - MEAN) / STD)[:, None]
    rows[:, 0] = -np.arange(TESTED)
    rows[:, scores + 16 :] = (1 - MEAN) / STD
    kept = np.arange(TESTED)[::-1].copy()
    worst, others, *drawn = galleries(signature(tmp_path, rule), evaluation(rows, kept))
    first = pixels(worst.items[0].image)
    assert first.shape == (4, 8)
    assert (first[:, :4] == 255).all()
    assert (first[:, 4:] == 5 * 50).all()
    assert worst.items[0].title.endswith("50.00")
    assert others.items[-1].title.endswith(("0.0000", "0.00"))
    assert len(worst.items) + len(others.items) <= 32
    assert len(drawn) == (rule == "elbo")
    for gallery in drawn:
        assert (pixels(gallery.items[0].image) == 255).all()


def test_images_of_a_generator_are_shown_and_the_real_ones_are_not(tmp_path: Path) -> None:
    rows = np.zeros((TESTED, 3 * 16), np.float32)
    rows[:, :16], rows[:, 16:32], rows[:, 32:] = -2.0, 9.0, 0.0
    (drawn,) = galleries(signature(tmp_path, "images"), evaluation(rows))
    assert [pixels(item.image).mean() for item in drawn.items[:3]] == [0, 255, 0]
    assert len(drawn.items) == min(pictures.DRAWN, 2 * TESTED)


@pytest.mark.parametrize(("rule", "kind"), [("class", "image"), ("reconstruct", "table")])
def test_others_have_no_pictures(tmp_path: Path, rule: str, kind: str) -> None:
    rows = np.zeros((TESTED, 18), np.float32)
    assert not pictures.sections(signature(tmp_path, rule, kind), evaluation(rows))


def test_a_run_without_outputs_has_none(tmp_path: Path) -> None:
    found = Evaluation({"rule": "images"}, None, None, 0.5)
    assert not pictures.sections(signature(tmp_path, "images"), found)
