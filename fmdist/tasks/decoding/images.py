"""Images that a generator makes of noise.

``{"rule": "images", "inputs": [name], "shape": [C, H, W], "latent": Z, "draws": M, "seed": 0}``: the model
maps ``noise`` (N, Z) to images (N, C, H, W) in the units of the data's images. Rows are (N, (M + 1) C H W):
M generated images, and the data's own image beside which they are judged.

Shapes: N samples, C channels, H height, W width, Z latent variables, M generated images per sample.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmdist.errors import UsageError
from fmdist.tasks.decoding.noise import normal
from fmdist.tasks.decoding.run import Arrays, Run

OPTIONS: tuple[str, ...] = ("seed",)
"""What `answer` can be told: another ``seed`` makes other images."""

Rule = Mapping[str, Any]

_DRAWS, _CALIBRATION = range(2)
"""Streams of noise."""


def feed(rule: Rule, batch: Arrays) -> dict[str, NDArray[Any]]:
    """Return the noise of one call, which the evaluation doesn't use."""
    return {"noise": normal(rule["seed"], _CALIBRATION, batch["index"], (rule["latent"],))}


def rows(rule: Rule, run: Run, batch: Arrays) -> NDArray[np.float32]:
    """Return M generated images and the data's, flattened, for each sample; runs the model M times."""
    real = batch[rule["inputs"][0]]
    drawn = _draw(rule, run, batch["index"], rule["seed"], rule["draws"])
    return np.concatenate([image.reshape(len(real), -1) for image in (*drawn, real)], axis=1)


def answer(rule: Rule, run: Run, batch: Arrays, options: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one generated image per sample, whatever the data's images are.

    Raises:
        UsageError: if ``options["seed"]`` is no seed.
    """
    seed = options.get("seed", rule["seed"])
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise UsageError(
            field="--set seed",
            problem="not a seed that images can be drawn with",
            value=seed,
            allowed=f"a whole number from 0 to {2**63 - 1}",
            fix="write --set seed=1",
        )
    (drawn,) = _draw(rule, run, batch["index"], seed, 1)
    return decode(rule, drawn.reshape(len(drawn), -1))


def decode(rule: Rule, rows: NDArray[np.floating[Any]]) -> list[dict[str, Any]]:
    """Return the first generated image of each row as nested lists (C, H, W), in the data's units.

    >>> decode({"shape": [1, 1, 2]}, np.array([[0.5, 1.0, 0.0, 0.0]]))
    [{'image': [[[0.5, 1.0]]]}]
    """
    shape = tuple(rule["shape"])
    return [{"image": row[: math.prod(shape)].reshape(shape).tolist()} for row in rows]


def errors(rule: Rule, rows: NDArray[np.floating[Any]], target: NDArray[Any]) -> None:
    """Return None: a generated image has nothing to be compared with."""


def _draw(rule: Rule, run: Run, index_N: NDArray[Any], seed: int, draws: int) -> list[NDArray[np.float32]]:
    noise_NMZ = normal(seed, _DRAWS, index_N, (draws, rule["latent"]))
    return [run({"noise": np.ascontiguousarray(noise_NMZ[:, draw])}) for draw in range(draws)]
