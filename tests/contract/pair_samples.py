"""A tiny set of pairs of texts; see `tests.contract.data_samples`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WORDS = {"one": "un", "two": "deux", "three": "trois", "red": "rouge", "blue": "bleu", "house": "maison"}


def parallel_text(folder: Path) -> dict[str, Any]:
    """A table of two to five words each and their translations, the last word first."""
    random = np.random.default_rng(8)
    lines = ["english\tfrench"]
    for number in range(60):
        words = random.choice(list(WORDS), size=random.integers(2, 6)).tolist()
        lines.append(f"{' '.join(words)} {number}\t{number} {' '.join(WORDS[word] for word in words[::-1])}")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return {
        "path": str(folder / "pairs.tsv"),
        "source": "english",
        "target": "french",
        "tokenizer": {"kind": "character"},
    }


SAMPLES: dict[str, Callable[[Path], dict[str, Any]]] = {"parallel_text": parallel_text}
"""Kind -> a function that writes its sample and returns the recipe's ``data`` mapping without ``kind``."""
