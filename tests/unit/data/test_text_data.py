"""Labelled texts from tables, folders and the datasets library: what is read, refused and counted."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from pydantic import ValidationError

from fmdist import component
from fmdist.contracts import Draw
from fmdist.data.inputs import read_inputs
from fmdist.data.pair_preprocess import PairPreprocess
from fmdist.data.preprocess import Preprocess
from fmdist.data.raw import RawData
from fmdist.data.text_inputs import read_prompts, read_sources
from fmdist.data.text_preprocess import TEXT, TextPreprocess
from fmdist.data.texts import TextConfig
from fmdist.data.tokenizer import UNKNOWN
from fmdist.errors import DataError
from tests.contract import text_samples


def config(kind: str, **options: Any) -> TextConfig:
    kind_class = component.load(component.find("data", kind))
    found: TextConfig = kind_class.model_validate_json(json.dumps(options))
    return found


def table(path: Path, content: str, /, **options: Any) -> TextConfig:
    path.write_text(content, encoding="utf-8")
    return config("text_table", path=str(path), **options)


def texts_of(raw: RawData) -> list[str]:
    return [str(text) for text in raw.values.take(np.arange(len(raw.values)))["text"]]


def many(count: int = 20) -> list[tuple[str, str]]:
    return [(f"text {number}", "even" if number % 2 == 0 else "odd") for number in range(count)]


def as_csv(rows: list[tuple[str, str]]) -> str:
    return "text,label\n" + "".join(f"{text},{label}\n" for text, label in rows)


# Tables


def test_a_csv_cell_is_kept_as_it_is(tmp_path: Path) -> None:
    rows = 'text,label\n"two\nlines, ""quoted""",a\nNA,b\n null ,a\n\nNone,b\n'
    raw = table(tmp_path / "t.csv", rows).read()
    assert texts_of(raw) == ['two\nlines, "quoted"', "NA", " null ", "None"]
    assert raw.targets.tolist() == [0, 1, 0, 1]
    assert raw.target.names == ("a", "b")
    assert raw.sources == [f"{tmp_path / 't.csv'}:{row}" for row in (1, 2, 3, 4)]


def test_tabs_and_stated_delimiters(tmp_path: Path) -> None:
    assert texts_of(table(tmp_path / "t.tsv", "text\tlabel\na, b\tx\nc\ty\n").read()) == ["a, b", "c"]
    found = table(tmp_path / "t.csv", "label;text\nx;a, b\ny;c\n", delimiter=";").read()
    assert texts_of(found) == ["a, b", "c"]


def test_a_long_cell_is_no_error(tmp_path: Path) -> None:
    raw = table(tmp_path / "t.csv", f"text,label\n{'long ' * 40000},a\nshort,b\n").read()
    assert len(texts_of(raw)[0]) == 200000


def test_bad_rows_of_json_lines_say_why(tmp_path: Path) -> None:
    lines = [
        '{"text": "good", "label": 1}',
        '{"text": "also", "label": 10}',
        '{"text": "third", "label": 2}',
        *('{"text": "more", "label": 2}',) * 3,
        "{",
        "[1]",
        '{"text": ["x"], "label": 1}',
        '{"text": "  ", "label": 1}',
        '{"text": "no label"}',
    ]
    raw = table(tmp_path / "t.jsonl", "\n".join(lines)).read()
    assert raw.target.names == ("1", "2", "10")
    assert raw.targets.tolist() == [0, 2, 1, 1, 1, 1]
    reasons = {record.source.rpartition(":")[2]: record.reason for record in raw.bad}
    assert reasons.pop("7").startswith("not JSON (")
    assert reasons == {
        "8": "not a JSON object",
        "9": "'text' holds neither text nor a number",
        "10": "an empty text",
        "11": "no label",
    }


def test_parquet_and_json_lines_give_what_csv_gives(tmp_path: Path) -> None:
    rows = many()
    columns = {"label": [label for _, label in rows], "text": [text for text, _ in rows]}
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    lines = "\n".join(json.dumps({"text": text, "label": label}) for text, label in rows)
    raws = [
        table(tmp_path / "t.csv", as_csv(rows)).read(),
        table(tmp_path / "t.jsonl", lines).read(),
        config("text_table", path=str(tmp_path / "t.parquet")).read(),
    ]
    for raw in raws[1:]:
        assert texts_of(raw) == texts_of(raws[0])
        assert raw.targets.tolist() == raws[0].targets.tolist()


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("t.csv", "text,label\na,b\n", {"text": "txt"}, r"no such column.*Did you mean 'text'"),
        ("t.jsonl", '{"txt": "a", "label": "b"}', {}, r"no such column.*Did you mean 'txt'"),
        ("t.csv", "text,label\na,b\n", {"label": "text"}, "already in data.text"),
        ("t.csv", "text,label\n", {}, "no rows"),
        ("t.csv", "", {}, "no such column"),
        ("t.txt", "text,label\na,b\n", {}, r"not a table of texts.*\.jsonl"),
        ("t.parquet", "text,label\na,b\n", {}, "not a readable table"),
        ("t.csv", "text,label\n" + "".join(f"a{n},b{n}\n" for n in range(9)), {}, "9 distinct labels in 9"),
    ],
)
def test_a_table_of_something_else_is_refused(
    tmp_path: Path, name: str, content: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=f"(?s){message}"):
        table(tmp_path / name, content, **options).read()


def test_a_missing_or_foreign_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        config("text_table", path=str(tmp_path / "none.csv")).read()
    (tmp_path / "latin.csv").write_bytes(b"text,label\ncaf\xe9,a\n")
    with pytest.raises(DataError, match="not readable"):
        config("text_table", path=str(tmp_path / "latin.csv")).read()


# What all kinds share


def test_empty_texts_go_to_quarantine(tmp_path: Path) -> None:
    rows = [*many(200), ("", "even"), ("text", "")]
    splits = table(tmp_path / "t.csv", as_csv(rows)).build(0, tmp_path / "bad.jsonl")
    assert splits.record["quarantined"] == 2
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert reasons == ["an empty text", "no label"]


def test_the_tokenizer_has_seen_the_training_split_only(tmp_path: Path) -> None:
    rows = [(f"word{number}", "even" if number % 2 == 0 else "odd") for number in range(40)]
    splits = table(tmp_path / "t.csv", as_csv(rows)).build(0)
    counts = splits.record["tokens"]
    assert counts["train"] == {"tokens": 28, "unknown": 0, "cut": 0}
    assert counts["validation"] == {"tokens": 6, "unknown": 6, "cut": 0}
    assert counts["test"] == {"tokens": 6, "unknown": 6, "cut": 0}
    assert splits.spec.inputs[0].size == 4 + 28
    assert splits.spec.tokenizers == splits.preprocess.tokenizers


def test_long_texts_are_cut_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [(f"{'very ' * (number % 4)}good {number}", label) for number, (_, label) in enumerate(many(40))]
    with caplog.at_level(logging.WARNING):
        splits = table(tmp_path / "t.csv", as_csv(rows), max_length=4).build(0)
    assert sum(part["cut"] for part in splits.record["tokens"].values()) == 10
    assert "texts are longer than 4 tokens and were cut (data.max_length)" in caplog.text
    batch = splits.train.__getitems__(Draw(0, np.arange(len(splits.train))))
    assert batch["tokens"].shape[1] == splits.spec.inputs[0].longest == 4


def test_long_texts_stop_where_that_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a text has 2 tokens.*at most 1"):
        table(tmp_path / "t.csv", as_csv(many()), max_length=1, on_long="fail").build(0)


def test_a_class_missing_from_the_training_split_is_refused(tmp_path: Path) -> None:
    rows = [*many(30), ("rare text", "rare")]
    split = {"train": 0.4, "validation": 0.3, "test": 0.3, "stratify": False}
    seeds = [0, 1, 2, 3, 4, 5, 6, 7]
    said = []
    for seed in seeds:
        try:
            table(tmp_path / "t.csv", as_csv(rows), split=split).build(seed)
        except DataError as error:
            said.append(str(error))
    assert 0 < len(said) < len(seeds)
    assert all("classes that the training split doesn't have, got ['rare']" in text for text in said)


def test_nothing_to_normalize(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match="no numbers to normalize"):
        config("text_table", path="t.csv", normalize=False)


def test_preprocessing_comes_back_from_json(tmp_path: Path) -> None:
    preprocess = table(tmp_path / "t.csv", as_csv(many()), max_length=2).build(0).preprocess
    assert isinstance(preprocess, TextPreprocess)
    again = Preprocess.from_json(json.loads(json.dumps(preprocess.to_json())))
    raw = np.array([("text 3",), ("text 0 and more",), (" ",)], TEXT)
    np.testing.assert_array_equal(again(raw)["tokens"], preprocess(raw)["tokens"])
    assert again == preprocess
    tokens_NT = preprocess(raw)["tokens"]
    assert tokens_NT.shape == (3, 2)
    assert tokens_NT[2].tolist() == [UNKNOWN, 0]
    with pytest.raises(DataError, match="not rows of texts"):
        preprocess(np.zeros((2, 3)))


# Folders


def folders(root: Path, files: dict[str, str]) -> TextConfig:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return config("text_folders", root=str(root))


def test_the_published_layout_keeps_its_splits(tmp_path: Path) -> None:
    data = config("text_folders", **text_samples.text_folders(tmp_path))
    raw = data.read()
    assert raw.target.names == ("good", "poor")
    assert raw.published is not None
    assert {name: int((raw.published == name).sum()) for name in ("train", "test")} == {
        "train": 45,
        "test": 15,
    }
    assert "A film." not in texts_of(raw)
    splits = data.build(0)
    assert len(splits.test) == 15
    assert len(splits.train) + len(splits.validation) == 45


def test_a_folder_that_is_no_class_has_to_be_named(tmp_path: Path) -> None:
    options = text_samples.text_folders(tmp_path)
    with pytest.raises(DataError, match=r"has no folder here, got \['unsup'\].*data.leave_out"):
        config("text_folders", **{**options, "leave_out": []}).read()
    with pytest.raises(DataError, match=r"no such folder.*Did you mean 'unsup'"):
        config("text_folders", **{**options, "leave_out": ["unsub"]}).read()


def test_one_level_of_folders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = folders(tmp_path, {"a/1.txt": "one", "b/2.txt": "two", "b/c/3.TXT": "three", "b/notes.md": "x"})
    (tmp_path / "a" / "latin.txt").write_bytes(b"caf\xe9")
    with caplog.at_level(logging.WARNING):
        raw = data.read()
    assert texts_of(raw) == ["one", "two", "three"]
    assert [Path(record.source).name for record in raw.bad] == ["latin.txt"]
    assert raw.bad[0].reason.startswith("not UTF-8 text")
    assert "1 file(s) of another kind are ignored" in caplog.text


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a/1.txt": "one"}, "fewer than two class folders"),
        ({"a/1.txt": "one", "b/1.csv": "two"}, "without files of the right kind"),
        ({"train/a/1.txt": "x", "train/b/1.txt": "y", "test/a/1.txt": "z"}, r"no folder here, got \['b'\]"),
    ],
)
def test_incomplete_folders_are_refused(tmp_path: Path, files: dict[str, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        folders(tmp_path, files).read()


# The datasets library


def published(parts: dict[str, list[int]], names: list[str] | None) -> datasets.DatasetDict:
    label = datasets.Value("int64") if names is None else datasets.ClassLabel(names=names)
    features = datasets.Features({"text": datasets.Value("string"), "label": label})
    return datasets.DatasetDict(
        {
            part: datasets.Dataset.from_dict(
                {"text": [f"{part} {row}" for row in range(len(labels))], "label": labels}, features
            )
            for part, labels in parts.items()
        }
    )


def test_a_saved_data_set_keeps_its_names_and_splits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    parts = {"train": [0, 1, 1, -1], "test": [1, 0], "unsupervised": [-1], "validation": [-1, -1]}
    published(parts, ["neg", "pos"]).save_to_disk(tmp_path / "films")
    with caplog.at_level(logging.WARNING):
        raw = config("huggingface", name=str(tmp_path / "films")).read()
    assert raw.target.names == ("neg", "pos")
    assert texts_of(raw) == ["train 0", "train 1", "train 2", "test 0", "test 1"]
    assert raw.targets.tolist() == [0, 1, 1, 1, 0]
    assert raw.published is not None
    assert raw.published.tolist() == ["train"] * 3 + ["test"] * 2
    assert [record.reason for record in raw.bad] == ["no label"]
    assert "'unsupervised' is no split" in caplog.text
    assert "'validation' has no labels" in caplog.text


def test_labels_without_names_are_their_own(tmp_path: Path) -> None:
    published({"train": [-1, 1, 1, -1]}, None).save_to_disk(tmp_path / "films")
    raw = config("huggingface", name=str(tmp_path / "films")).read()
    assert raw.target.names == ("-1", "1")
    assert raw.targets.tolist() == [0, 1, 1, 0]


def test_a_folder_of_data_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "train.csv").write_text(as_csv(many(6)))
    raw = config("huggingface", name=str(tmp_path / "films")).read()
    assert raw.target.names == ("even", "odd")
    assert len(raw.values) == 6


def test_what_the_library_can_not_load_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"data.name: the data set can't be loaded .*a local folder, or a name"
    ):
        config("huggingface", name=str(tmp_path / "none")).read()
    published({"train": [0, 1]}, ["neg", "pos"]).save_to_disk(tmp_path / "films")
    with pytest.raises(DataError, match=r"no such column.*Did you mean 'text'"):
        config("huggingface", name=str(tmp_path / "films"), text="texts").read()


# What a user asks about


def fitted(tmp_path: Path, **options: Any) -> Preprocess:
    return table(tmp_path / "training.csv", as_csv(many()), **options).build(0).preprocess


def test_texts_come_from_files_tables_and_the_command_line(tmp_path: Path) -> None:
    preprocess = fitted(tmp_path)
    (tmp_path / "one.txt").write_text("text 1\nand more\n")
    (tmp_path / "two.csv").write_text("id,text\n7,text 2\n8,text 3\n")
    names, raw = read_inputs([tmp_path / "one.txt", tmp_path / "two.csv"], ["text 4"], preprocess)
    assert names == [str(tmp_path / "one.txt"), f"{tmp_path}/two.csv:1", f"{tmp_path}/two.csv:2", "text:1"]
    assert raw["text"].tolist() == ["text 1\nand more\n", "text 2", "text 3", "text 4"]


def test_unknown_and_cut_tokens_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    preprocess = fitted(tmp_path, max_length=2)
    with caplog.at_level(logging.WARNING):
        read_inputs([], ["text text", "text quark quark"], preprocess)
    assert "2 of 5 tokens are not in the vocabulary" in caplog.text
    assert "1 of 2 texts are longer than 2 tokens" in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b" \n", "an empty text"),
        ("a.txt", b"caf\xe9", "not UTF-8 text"),
        ("a.csv", b"text\nx\n \n", "a.csv:2: an empty text"),
        ("a.csv", b"text,n\nx\n", "1 cells where the header has 2"),
        ("a.csv", b"words\nx\n", "no such column"),
    ],
)
def test_a_bad_input_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_inputs([tmp_path / name], [], fitted(tmp_path))


def test_a_missing_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt: not a readable file"):
        read_inputs([tmp_path / "none.txt"], [], fitted(tmp_path))
    with pytest.raises(DataError, match="an empty text"):
        read_inputs([], [" "], fitted(tmp_path))


def test_sources_are_lines_and_prompts_are_files(tmp_path: Path) -> None:
    preprocess = fitted(tmp_path)
    tokenizer = preprocess.tokenizers["tokens"]
    pairs = PairPreprocess(9, source_tokenizer=tokenizer, target_tokenizer=tokenizer)
    (tmp_path / "a.de").write_bytes("eins\r\n\nzwei\u2028drei\n".encode())
    (tmp_path / "a.tsv").write_text("source\ttext\nvier\tfuenf\n")
    paths = [tmp_path / "a.de", tmp_path / "a.tsv"]
    names, raw = read_sources(paths, ["sechs"], pairs)
    assert raw["source"].tolist() == ["eins", "zwei\u2028drei", "vier", "sechs"]
    assert names == [f"{paths[0]}:1", f"{paths[0]}:3", f"{paths[1]}:1", "text:1"]
    names, raw = read_prompts(paths, ["sechs"], preprocess)
    assert raw["text"].tolist() == [paths[0].read_text(encoding="utf-8"), "fuenf", "sechs"]
    (tmp_path / "blank.de").write_text("\n\n")
    with pytest.raises(DataError, match="the files hold no text"):
        read_sources([tmp_path / "blank.de"], [], pairs)
