"""Pairs of texts: how they are read, split, cut and made into ids, and what is refused."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmdist.contracts import Draw, TargetSpec
from fmdist.data.inputs import read_inputs
from fmdist.data.pair_preprocess import PAIR, SOURCE, PairPreprocess
from fmdist.data.parallel_text import Config
from fmdist.data.preprocess import Preprocess
from fmdist.data.tokenizer import BEGIN, END, UNKNOWN, TextTokenizer
from fmdist.data.tokenizer_config import TokenizerConfig
from fmdist.errors import DataError

CHARACTERS = {"kind": "character"}


def files(folder: Path, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    for side, name in enumerate(("en", "es")):
        text = "".join(f"{pair[side]}\n" for pair in pairs)
        (folder / name).write_text(text, encoding="utf-8")
    return {"source": str(folder / "en"), "target": str(folder / "es"), "tokenizer": CHARACTERS}


def pairs(count: int) -> list[tuple[str, str]]:
    return [(f"red {number}", f"{number} rojo") for number in range(count)]


def config(values: dict[str, Any], **changes: Any) -> Config:
    return Config.model_validate(values | changes)


def rows(sources: list[str], targets: list[str]) -> Any:
    raw = np.empty(len(sources), PAIR)
    raw["source"], raw["target"] = sources, targets
    return raw


def fitted(
    sources: list[str], targets: list[str], max_length: int = 50, shared: bool = False
) -> PairPreprocess:
    characters = TokenizerConfig(kind="character")
    preprocess = PairPreprocess(max_length, configs=(characters, None if shared else characters))
    return preprocess.fit([rows(sources, targets)], normalize=True)


def test_lines_of_two_files_belong_together(tmp_path: Path) -> None:
    raw = config(files(tmp_path, [("a", "b"), ("one\u2028text", "x\r"), ("c", "d")])).read()
    values = raw.values.take(np.arange(3))
    assert values["source"].tolist() == ["a", "one\u2028text", "c"]
    assert values["target"].tolist() == ["b", "x", "d"]
    assert raw.sources[1] == f"{tmp_path / 'en'}:2"
    assert raw.target == TargetSpec("tokens")


@pytest.mark.parametrize("name", ["pairs.tsv", "pairs.csv", "pairs.jsonl"])
def test_columns_of_a_table(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    cells = [("en", "es"), ("NA", '"sí", dijo'), ("yes", "sí")]
    if name == "pairs.jsonl":
        path.write_text("\n".join(json.dumps(dict(zip(cells[0], row, strict=True))) for row in cells[1:]))
    elif name == "pairs.tsv":
        path.write_text('en\tes\nNA\t"""sí"", dijo"\nyes\tsí\n', encoding="utf-8")
    else:
        path.write_text('en,es\nNA,"""sí"", dijo"\nyes,sí\n', encoding="utf-8")
    raw = Config(path=path, source="en", target="es").read()
    assert raw.values.take(np.arange(2)).tolist() == cells[1:]
    with pytest.raises(DataError, match="Did you mean 'es'"):
        Config(path=path, source="en", target="ess").read()


def test_files_of_different_length_are_refused_with_both_counts(tmp_path: Path) -> None:
    values = files(tmp_path, pairs(4))
    (tmp_path / "es").write_text("uno\ndos\ntres", encoding="utf-8")
    with pytest.raises(DataError, match=r"es has 3 lines and \S+en has 4") as caught:
        config(values).read()
    assert caught.value.problems[0].field == "data.target"


@pytest.mark.parametrize(
    ("content", "problem"), [(None, "No such file"), (b"", "empty"), (b"\xff\xfe\n", "UTF-8")]
)
def test_unusable_files_are_named(content: bytes | None, problem: str, tmp_path: Path) -> None:
    values = files(tmp_path, pairs(3))
    (tmp_path / "es").unlink()
    if content is not None:
        (tmp_path / "es").write_bytes(content)
    with pytest.raises(DataError, match=problem) as caught:
        config(values).read()
    assert caught.value.problems[0].field == str(tmp_path / "es")


def test_empty_lines_go_to_quarantine(tmp_path: Path) -> None:
    values = files(tmp_path, [*pairs(200), (" ", "vacío"), ("empty", "")])
    data = config(values, clean={"max_bad_share": 0.02}).build(0, tmp_path / "bad.jsonl")
    bad = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert bad == [
        {"source": f"{tmp_path / 'en'}:201", "reason": "an empty source"},
        {"source": f"{tmp_path / 'en'}:202", "reason": "an empty target"},
    ]
    assert data.record["quarantined"] == 2
    assert sum(data.record["sizes"].values()) == 200


def test_a_source_is_in_one_split_only(tmp_path: Path) -> None:
    # Another target, an equal pair, and the same letter as two code points instead of one.
    repeated = [
        *pairs(60),
        ("red 1", "uno, rojo"),
        ("red 2", "2 rojo"),
        ("caf\u00e9", "x"),
        ("cafe\u0301", "y"),
    ]
    data = config(files(tmp_path, repeated)).build(0)
    texts = [
        text for part in (data.train, data.validation, data.test) for text in part.raw(np.arange(len(part)))
    ]
    assert len({source for source, _ in texts}) == len(texts) == 61
    assert ("red 1", "1 rojo") in [tuple(text) for text in texts], "the first target is kept"
    assert (data.record["duplicates"], data.record["conflicting_duplicates"]) == (3, 2)


def test_ids_are_shifted_by_one(tmp_path: Path) -> None:
    data = config(files(tmp_path, pairs(40))).build(0)
    source, target = (TextTokenizer(data.spec.tokenizers[name]) for name in ("source", "target"))
    assert [item.size for item in data.spec.inputs] == [source.size, target.size]
    assert data.spec.target == TargetSpec("tokens", size=target.size)
    batch = data.train.__getitems__(Draw(0, np.arange(len(data.train))))
    for row, (english, spanish) in enumerate(data.train.raw(np.arange(len(data.train)))):
        ids = {
            name: batch[name][row][batch[name][row] != 0].tolist() for name in ("source", "prefix", "target")
        }
        assert source.decode(np.array(ids["source"])) == english
        assert target.decode(np.array(ids["target"])) == spanish
        assert ids["source"][-1] == END
        assert ids["prefix"] == [BEGIN, *ids["target"][:-1]]
        assert ids["target"][-1] == END
    longest = [item.longest for item in data.spec.inputs]
    assert longest == [batch["source"].shape[1], batch["prefix"].shape[1]]


def test_long_texts_are_cut_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        preprocess = fitted(["abcdef", "a"], ["b", "abcd"], max_length=4)
    assert "2 of 4 training texts are longer than data.max_length, 4 tokens" in caplog.text
    ids = preprocess(rows(["abcdef", "a"], ["b", "abcd"]))
    assert ids["source"].shape == ids["prefix"].shape == ids["target"].shape == (2, 4)
    assert preprocess.source.decode(ids["source"][0]) == "abc"
    assert ids["source"][0, -1] == ids["target"][1, -1] == END
    assert [item.longest for item in preprocess.inputs] == [4, 4]


def test_sources_alone_are_what_is_translated() -> None:
    preprocess = fitted(["abc", "ab"], ["x", "y"])
    raw = np.empty(2, SOURCE)
    raw["source"] = ["ab?", "c"]
    ids = preprocess(raw)
    assert set(ids) == {"source", "prefix"}
    assert ids["prefix"].tolist() == [[BEGIN], [BEGIN]]
    assert ids["source"][0].tolist()[2:] == [UNKNOWN, END]
    losses = preprocess.losses(raw)
    assert (losses.tokens, losses.unknown, losses.cut) == (4, 1, 0)


def test_a_source_without_known_tokens_still_has_an_end() -> None:
    preprocess = PairPreprocess(9, configs=(TokenizerConfig(), None)).fit([rows(["a b"], ["c"])], True)
    raw = np.empty(1, SOURCE)
    raw["source"] = ["\u00a0"]
    assert preprocess(raw)["source"].tolist() == [[END]]


@pytest.mark.parametrize("shared", [False, True])
def test_preprocessing_survives_json(shared: bool) -> None:
    preprocess = fitted(["abc"], ["bcd"], shared=shared)
    again = Preprocess.from_json(json.loads(json.dumps(preprocess.to_json())))
    assert again == preprocess
    sizes = [item.size for item in again.inputs]
    assert sizes == ([8, 8] if shared else [7, 7])
    assert (preprocess.source_tokenizer == preprocess.target_tokenizer) is shared


def test_rows_of_another_kind_are_refused() -> None:
    with pytest.raises(DataError, match="not rows of texts"):
        fitted(["a"], ["b"])(np.zeros((2, 3)))


def test_one_vocabulary_has_one_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="remove target_tokenizer"):
        config(files(tmp_path, pairs(3)), shared=True, target_tokenizer=CHARACTERS)


def test_sources_to_translate_come_from_lines_columns_and_options(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    preprocess = replace(fitted(["abcd"], ["x"], max_length=5), column="en")
    (tmp_path / "lines.txt").write_text("ab\n\n?\n", encoding="utf-8")
    (tmp_path / "table.csv").write_text("id,en\n1,bad cad\n", encoding="utf-8")
    paths = [tmp_path / "lines.txt", tmp_path / "table.csv"]
    names, raw = read_inputs(paths, ["c"], preprocess)
    assert names == [f"{paths[0]}:1", f"{paths[0]}:3", f"{paths[1]}:1", "text:1"]
    assert raw["source"].tolist() == ["ab", "?", "bad cad", "c"]
    assert "2 of 11 tokens are not in the vocabulary" in caplog.text
    assert "1 of 4 texts are longer than 5 tokens" in caplog.text
    with pytest.raises(DataError, match="an empty text"):
        read_inputs([], [" "], preprocess)
