"""Texts and their classes from a data set of the Hugging Face hub or a local one, by the datasets library."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmdist.data.class_folders import PUBLISHED
from fmdist.data.columns import check_column
from fmdist.data.raw import RawData
from fmdist.data.texts import Labelled, TextConfig
from fmdist.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset

REQUIRES = ("text", "datasets")

logger = logging.getLogger(__name__)

_NO_LABEL = -1
"""What data sets of the hub whose labels have names write where there is none."""


class Config(TextConfig):
    """Published splits are kept; parts that are none (``unsupervised``), or have no labels, are left out."""

    name: str
    """A data set of the hub, such as ``stanfordnlp/imdb``, or a local folder that ``save_to_disk`` wrote or
    that holds data files."""
    subset: str | None = None
    """Which of the data set's configurations; null if it has one only."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null for the newest."""
    text: str = "text"
    """The column that holds the texts."""
    label: str = "label"
    """The column that holds the classes: names, or numbers that the data set itself names."""

    def read(self) -> RawData:
        """Return the rows that have a text and a label; downloads what isn't in the library's cache."""
        names: list[str] | None = None
        found: list[Labelled] = []
        for part, data in self._load().items():
            for column in (self.text, self.label):
                check_column(column, data.column_names, field=f"{self.name} ({part})")
            if part not in PUBLISHED:
                logger.warning("%s: part '%s' is no split and is left out", self.name, part)
                continue
            names = getattr(data.features[self.label], "names", None)
            labels = list(data[self.label])
            if names is not None and set(labels) == {_NO_LABEL}:
                logger.warning("%s: part '%s' has no labels and is left out", self.name, part)
                continue
            for row, (text, label) in enumerate(zip(data[self.text], labels, strict=True), start=1):
                source = f"{self.name}/{part}:{row}"
                found.append(
                    Labelled(self._words(text, source), _label(label, names), source, PUBLISHED[part])
                )
        return self.to_raw(found, [], self.unfitted(self.text), names)

    def _load(self) -> dict[str, Dataset]:
        import datasets

        folder = Path(self.name)
        try:
            with _quiet():
                if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
                    loaded = datasets.load_from_disk(self.name)
                else:
                    loaded = datasets.load_dataset(self.name, self.subset, revision=self.revision)
        except Exception as error:  # the library raises a dozen kinds, some of them Exception itself
            said = (str(error).strip().splitlines() or [""])[0]
            raise DataError(
                field="data.name",
                problem=f"the data set can't be loaded ({type(error).__name__}: {said})",
                value=self.name,
                allowed="a local folder, or a name on the hub, with a network or in the library's cache",
            ) from error
        return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"train": loaded}

    def _words(self, text: Any, source: str) -> str:
        if text is not None and not isinstance(text, str):
            raise DataError(
                field="data.text",
                problem=f"the column doesn't hold texts, as in {source}",
                value=text,
                fix="name the column that does",
            )
        return text or ""


def _label(label: Any, names: list[str] | None) -> str:
    if label is None:
        return ""
    if names is None:
        return str(label)
    return "" if label == _NO_LABEL else names[label]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the library's progress bars off the terminal, which belongs to ours."""
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()
