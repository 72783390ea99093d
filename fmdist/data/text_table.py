"""Texts and their classes from the columns of a CSV, JSON-lines or Parquet file."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fmdist.data.config import Location
from fmdist.data.raw import RawData
from fmdist.data.text_rows import read_columns
from fmdist.data.texts import Labelled, TextConfig
from fmdist.errors import DataError

REQUIRES = ("text",)


class Config(TextConfig):
    """The classes are the labels found; a row without text or label is a bad record."""

    path: Location
    """A ``.csv`` or ``.tsv`` file with a header line, JSON objects line by line (``.jsonl``, ``.ndjson``), or
    a Parquet file (``.parquet``, ``.pq``)."""
    text: str = "text"
    """The column that holds the texts."""
    label: str = "label"
    """The column that holds the classes."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = None
    """What separates the cells of a CSV file; null for a tab in ``.tsv`` files, else a comma."""

    def read(self) -> RawData:
        """Return the rows that have a text and a label."""
        if self.text == self.label:
            raise DataError(
                field="data.label", problem="the column is already in data.text", value=self.label
            )
        table = read_columns(self.path, [self.text, self.label], self.delimiter)
        found = [
            Labelled(text, label, source)
            for (text, label), source in zip(table.rows, table.sources, strict=True)
        ]
        return self.to_raw(found, table.bad, self.unfitted(self.text, self.delimiter))
