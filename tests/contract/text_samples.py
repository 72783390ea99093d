"""A tiny data set of every kind of labelled texts; returns the recipe's ``data`` mapping."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WORDS = {
    "good": ("fine", "great", "lovely", "a joy", "clever"),
    "poor": ("dull", "bad", "awful", "a bore", "clumsy"),
}
"""Class -> words that tell it."""


def labelled_texts(per_class: int = 30, seed: int = 6) -> list[tuple[str, str]]:
    """Return distinct texts of several lengths with their classes."""
    random = np.random.default_rng(seed)
    found: dict[str, str] = {}
    for label, words in WORDS.items():
        while sum(other == label for other in found.values()) < per_class:
            chosen = random.choice(words, size=random.integers(1, 5))
            found[f"The film is {', '.join(chosen)}{random.choice(['.', '!', ''])}"] = label
    return list(found.items())


def text_table(folder: Path) -> dict[str, Any]:
    """JSON lines."""
    rows = [json.dumps({"text": text, "label": label}) for text, label in labelled_texts()]
    (folder / "texts.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return {"path": str(folder / "texts.jsonl"), "max_length": 16}


def text_folders(folder: Path) -> dict[str, Any]:
    """The layout of the Large Movie Review Dataset, with its folder of reviews that have no class."""
    texts = labelled_texts()
    for number, (text, label) in enumerate(texts):
        part = folder / ("test" if number % 4 == 0 else "train") / label
        part.mkdir(parents=True, exist_ok=True)
        (part / f"{number}.txt").write_text(text, encoding="utf-8")
    (folder / "train" / "unsup").mkdir()
    (folder / "train" / "unsup" / "0.txt").write_text("A film.", encoding="utf-8")
    return {
        "root": str(folder),
        "leave_out": ["unsup"],
        "max_length": 32,
        "tokenizer": {"kind": "character"},
    }


def huggingface(folder: Path) -> dict[str, Any]:
    """What ``save_to_disk`` writes."""
    import datasets

    texts, labels = zip(*labelled_texts(), strict=True)
    names = sorted(WORDS)
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)}
    )
    columns = {"text": list(texts), "label": [names.index(label) for label in labels]}
    datasets.Dataset.from_dict(columns, features).save_to_disk(folder / "films")
    return {
        "name": str(folder / "films"),
        "max_length": 32,
        "tokenizer": {"kind": "bpe", "vocabulary": 280},
    }


SAMPLES: dict[str, Callable[[Path], dict[str, Any]]] = {
    function.__name__: function for function in (text_table, text_folders, huggingface)
}
"""Kind -> a function that writes its sample."""
