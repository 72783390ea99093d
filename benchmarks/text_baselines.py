"""What needs no network, on the very splits of the text recipes: xz, and TF-IDF with logistic regression.

Run with ``python -m benchmarks.text_baselines``; takes half a minute.
"""

from __future__ import annotations

import lzma
import sys
import tempfile
from contextlib import chdir
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from benchmarks.families import RECIPES, make_data
from benchmarks.harness import write_results
from fmdist import stages
from fmdist.data.splits import DataSplits, Samples

PRESET = 9 | lzma.PRESET_EXTREME
RUNNING = ("language_lstm", "language_lstm_long")
NAMES = "text_gru"
RANGES, STRENGTHS = ((1, 3), (1, 4), (1, 5)), (1.0, 10.0, 100.0)
"""Lengths of the character n-grams and values of C; the validation split chooses."""


def xz_bits_per_character(train: str, test: str) -> float:
    """Return the bits per character by which ``test`` lengthens the xz file of ``train``, both UTF-8.

    So xz is conditioned on the training text, as a language model is by its weights; its window (64 MiB)
    holds all of it, where a model's context holds a few hundred tokens.
    """
    longer, before = (len(lzma.compress(text.encode(), preset=PRESET)) for text in (train + test, train))
    return 8 * (longer - before) / len(test)


def parts(recipe: stages.Recipe) -> tuple[str, str]:
    """Return the training and the test part of a running text, as the recipe cuts it."""
    text = Path("data/topics.txt").read_text(encoding="utf-8")
    split: Any = recipe.plain["data"]["split"]
    return text[: round(len(text) * split["train"])], text[len(text) - round(len(text) * split["test"]) :]


def linear(data: DataSplits) -> dict[str, float]:
    """Return validation and test accuracy of the linear model that the validation split prefers."""

    def texts(split: Samples) -> list[str]:
        return [str(row["text"]) for row in split.raw(np.arange(len(split)))]

    train, validation, test = (texts(split) for split in (data.train, data.validation, data.test))
    found = []
    for ngrams, strength in product(RANGES, STRENGTHS):
        features = TfidfVectorizer(analyzer="char", ngram_range=ngrams, lowercase=False, sublinear_tf=True)
        model = LogisticRegression(C=strength, max_iter=1000)
        model.fit(features.fit_transform(train), data.train.targets)
        scores = [
            float(model.score(features.transform(rows), split.targets))
            for rows, split in ((validation, data.validation), (test, data.test))
        ]
        found.append((*scores, ngrams[1], strength))
    validated, tested, longest, strength = max(found)
    return {"validation": validated, "test": tested, "longest_ngram": longest, "C": strength}


def main() -> None:
    """Measure and write the results."""
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        for name in (*RUNNING, NAMES):
            make_data((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"), Path(folder))
            recipe = stages.load_recipe(RECIPES / f"{name}.yaml")
            if name == NAMES:
                results[name] = {"tf_idf_logistic_regression": linear(recipe.data.build(recipe.seed))}
            else:
                results[name] = {"xz_bits_per_character": xz_bits_per_character(*parts(recipe))}
            sys.stdout.write(f"{name}: {results[name]}\n")
    sys.stdout.write(f"wrote {write_results('text_baselines', results)}\n")


if __name__ == "__main__":
    main()
