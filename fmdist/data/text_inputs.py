"""Texts that a user wants answers for: from files, from the columns of tables, or given right here.

All three readers return the name of every row, and raw rows. Tables are the files that
`fmdist.data.text_rows` reads; every other file is UTF-8 text.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fmdist.data.pair_preprocess import PairPreprocess
from fmdist.data.preprocess import Preprocess, Raw
from fmdist.data.text_preprocess import TextPreprocess
from fmdist.data.text_rows import is_table, read_columns
from fmdist.errors import DataError

logger = logging.getLogger(__name__)

_Named = tuple[str, str]
"""Where a text came from, and the text."""


def read_texts(
    paths: Sequence[Path], texts: Sequence[str], preprocess: TextPreprocess
) -> tuple[list[str], Raw]:
    """Read one text from each file, and one from each row of a table's column `TextPreprocess.column`.

    What the model will not see of them, unknown tokens and what is cut off, is counted in a warning.

    Raises:
        DataError: for a missing or unreadable file or column, and for an empty text.
    """
    names, raw = _rows("text", [*_whole(paths, preprocess.column, preprocess.delimiter), *_given(texts)])
    _warn_of_losses(preprocess, raw)
    return names, raw


def read_prompts(
    paths: Sequence[Path], texts: Sequence[str], preprocess: Preprocess
) -> tuple[list[str], Raw]:
    """Read one text from each file, and one from each row of a table's column ``text``; see `read_texts`."""
    return _rows("text", [*_whole(paths, "text"), *_given(texts)])


def read_sources(
    paths: Sequence[Path], texts: Sequence[str], preprocess: PairPreprocess
) -> tuple[list[str], Raw]:
    """Read one text from each line of a file, and one from each row of a table's column of sources.

    Blank lines are passed over; warns and raises as `read_texts` does.
    """
    names, raw = _rows("source", [*_lines(paths, preprocess.column), *_given(texts)])
    _warn_of_losses(preprocess, raw)
    return names, raw


def read_text_file(path: Path) -> str:
    """Return the content of a UTF-8 file.

    Raises:
        DataError: if it is missing or isn't UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(field=str(path), problem=f"not UTF-8 text ({error})") from None
    except OSError as error:
        raise DataError(field=str(path), problem=f"not a readable file ({error.strerror})") from None


def _whole(paths: Sequence[Path], column: str, delimiter: str | None = None) -> Iterator[_Named]:
    for path in paths:
        if is_table(path):
            yield from _column(path, column, delimiter)
        else:
            yield str(path), read_text_file(path)


def _warn_of_losses(preprocess: TextPreprocess | PairPreprocess, raw: Raw) -> None:
    losses = preprocess.losses(raw)
    if losses.unknown:
        logger.warning(
            "%d of %d tokens are not in the vocabulary of the training texts and are read as unknown",
            losses.unknown,
            losses.tokens,
        )
    if losses.cut:
        logger.warning(
            "%d of %d texts are longer than %d tokens; what follows was cut off",
            losses.cut,
            len(raw),
            preprocess.max_length,
        )


def _lines(paths: Sequence[Path], column: str) -> Iterator[_Named]:
    for path in paths:
        if is_table(path):
            yield from _column(path, column)
            continue
        # Not splitlines(), which also ends lines at characters that a text may hold.
        for number, line in enumerate(read_text_file(path).split("\n"), start=1):
            if line.strip():
                yield f"{path}:{number}", line.removesuffix("\r")


def _column(path: Path, name: str, delimiter: str | None = None) -> Iterator[_Named]:
    table = read_columns(path, [name], delimiter)
    if table.bad:
        raise DataError(field=table.bad[0].source, problem=table.bad[0].reason)
    for source, (text,) in zip(table.sources, table.rows, strict=True):
        yield source, text


def _given(texts: Sequence[str]) -> Iterator[_Named]:
    for number, text in enumerate(texts, start=1):
        yield f"text:{number}", text


def _rows(field: str, named: Sequence[_Named]) -> tuple[list[str], Raw]:
    for name, text in named:
        if not text.strip():
            raise DataError(field=name, problem="an empty text", fix="give a text, or leave it out")
    if not named:
        raise DataError(field="INPUT", problem="the files hold no text")
    raw = np.empty(len(named), [(field, object)])
    raw[field] = [text for _, text in named]
    return [name for name, _ in named], raw
