"""A tiny data set of users and items; returns the recipe's ``data`` mapping."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def interactions(folder: Path) -> dict[str, Any]:
    """Ratings in the layout of MovieLens' ``u.data``; users of two tastes."""
    random = np.random.default_rng(8)
    lines = []
    for user in range(24):
        for when, item in enumerate(random.choice(20, 9, replace=False)):
            rating = int(np.clip(3 + 1.5 * (-1) ** (user + item) + random.normal(0, 0.5), 1, 5))
            lines.append(f"{user + 100}\t{item + 500}\t{rating}\t{1000 * user + when}")
    (folder / "u.data").write_text("\n".join(lines) + "\n")
    return {"path": str(folder / "u.data"), "layout": "movielens"}


def implicit(folder: Path) -> dict[str, Any]:
    """The same, as what each user met; the last one is asked for."""
    shown = {"feedback": "implicit", "holdout": "leave_one_out"}
    return {"kind": "interactions", **interactions(folder), **shown}


SAMPLES: dict[str, Callable[[Path], dict[str, Any]]] = {"interactions": interactions}
VARIANTS: dict[str, Callable[[Path], dict[str, Any]]] = {"implicit": implicit}
