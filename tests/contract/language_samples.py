"""A tiny running text; see `tests.contract.data_samples`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WORDS = ("the cat", "a dog", "our horse", "sees", "likes", "follows", "and", "but", "today.", "again,")


def text_file(folder: Path) -> dict[str, Any]:
    """Some 3,000 characters of nonsense."""
    words = np.random.default_rng(9).choice(WORDS, size=450).tolist()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "text.txt").write_text(" ".join(words), encoding="utf-8")
    return {"path": str(folder / "text.txt"), "length": 32, "context": 8}


SAMPLES: dict[str, Callable[[Path], dict[str, Any]]] = {"text_file": text_file}
"""Kind -> a function that writes its sample and returns the recipe's ``data`` mapping without ``kind``."""
