"""What can be wrong with the data or a question of each task, as typed: handled and told, or refused."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.contract import id_samples, language_samples, pair_samples, text_samples
from tests.integration.command_line import Done, fmdist, succeed

pytestmark = pytest.mark.slow


def write_recipe(folder: Path, data: Mapping[str, Any], model: str, task: str, name: str = "bad") -> None:
    folder.joinpath(f"{name}.yaml").write_text(
        f"name: {name}\ndata: {json.dumps(data)}\nmodel: {{kind: {model}}}\ntask: {{kind: {task}}}\n"
        "train: {epochs: 1, batch_size: 8, threads: 1, trackers: []}\n"
    )


def refused(done: Done, *said: str) -> None:
    """Check that a command ended in exactly one error that says all of this."""
    assert (done.code, done.out) == (2, "")
    (error,) = (line for line in done.err.splitlines() if line.startswith("error: "))
    assert "Traceback" not in done.err
    for words in said:
        assert words in error


def answered(done: Done, *warned: str) -> str:
    """Check that a command was answered after warnings that say all of this; return the answer."""
    assert done.code == 0, done.err
    for words in warned:
        assert [line for line in done.err.splitlines() if line.startswith("warning: ") and words in line]
    return done.out


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained classifier of texts."""
    folder = tmp_path_factory.mktemp("films")
    data = text_samples.text_table(folder)
    write_recipe(folder, {"kind": "text_table", **data}, "gru, hidden: 8, embedding: 8", "classification")
    succeed(folder, "train", "bad.yaml")
    return folder


def write_texts(file: Path, texts: Sequence[tuple[str, str]]) -> None:
    file.write_text("\n".join(json.dumps({"text": text, "label": label}) for text, label in texts))


class TestTexts:
    def test_an_empty_text_to_learn_is_quarantined(self, films: Path) -> None:
        write_texts(films / "empty.jsonl", [*text_samples.labelled_texts(), (" ", "good")])
        words = ("train", "bad.yaml", "data.path=empty.jsonl", "name=empty")
        refused(fmdist(films, *words), "1 of 61 records are bad", "empty.jsonl:61: an empty text")
        answered(fmdist(films, *words, "data.clean.max_bad_share=0.1"), "1 of 61 records are bad")
        (bad,) = (films / "runs/empty/quarantine.jsonl").read_text().splitlines()
        assert json.loads(bad)["source"] == "empty.jsonl:61"

    def test_an_empty_text_to_answer(self, films: Path) -> None:
        refused(fmdist(films, "predict", "runs/bad", "--text", " "), "text:1: an empty text")

    def test_a_text_beyond_the_limit(self, films: Path) -> None:
        done = fmdist(films, "predict", "runs/bad", "--text", "fine " * 40)
        assert "good" in answered(done, "1 of 1 texts are longer than 16 tokens")

    def test_characters_and_words_never_seen(self, films: Path) -> None:
        done = fmdist(films, "predict", "runs/bad", "--text", "Ωmega ☃")
        assert "good" in answered(done, "2 of 2 tokens are not in the vocabulary")

    def test_a_class_that_is_too_rare_for_every_split(self, films: Path) -> None:
        write_texts(films / "rare.jsonl", [*text_samples.labelled_texts(), ("never seen", "rare")])
        words = ("train", "bad.yaml", "data.path=rare.jsonl", "name=rare")
        refused(fmdist(films, *words), "class 'rare' has too few rows to be in every split")
        assert not (films / "runs/rare/run.json").exists()

    def test_a_class_that_the_training_split_lacks(self, films: Path) -> None:
        write_texts(films / "rare.jsonl", [*text_samples.labelled_texts(), ("never seen", "rare")])
        words = ("train", "bad.yaml", "data.path=rare.jsonl", "data.split={stratify: false}")
        done = [fmdist(films, *words, f"name=rare{seed}", f"seed={seed}") for seed in range(6)]
        # One of five rows in ten is not in the training split.
        assert {item.code for item in done} == {0, 2}
        for item in done:
            if item.code:
                refused(item, "data.split: classes that the training split doesn't have, got ['rare']")

    def test_a_vocabulary_that_is_not_the_checkpoints(self, films: Path) -> None:
        texts = [(f"{text} {number}", label) for number, (text, label) in enumerate(many_words())]
        write_texts(films / "other.jsonl", texts)
        words = ("train", "bad.yaml", "data.path=other.jsonl", "name=other", "transfer.init_from=runs/bad")
        refused(fmdist(films, *words), "the vocabulary doesn't match: 'embedding.weight' has")
        succeed(films, *words, "transfer.skip=[embedding.weight]")

    def test_texts_that_changed_since_training(self, tmp_path: Path) -> None:
        data = text_samples.text_table(tmp_path)
        write_recipe(tmp_path, {"kind": "text_table", **data}, "text_cnn", "classification")
        succeed(tmp_path, "train", "bad.yaml")
        write_texts(tmp_path / "texts.jsonl", many_words())
        for words in (["evaluate", "runs/bad"], ["train", "bad.yaml", "train.epochs=2"]):
            refused(fmdist(tmp_path, *words), "runs/bad: the data has changed since training began")


def many_words() -> list[tuple[str, str]]:
    return [(f"{text} and then some more", label) for text, label in text_samples.labelled_texts(seed=7)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model of pairs."""
    folder = tmp_path_factory.mktemp("pairs")
    data = {"kind": "parallel_text", **pair_samples.parallel_text(folder)}
    write_recipe(folder, data, "rnn_seq2seq, hidden: 8, embedding: 8", "sequence_to_sequence")
    succeed(folder, "train", "bad.yaml")
    return folder


class TestPairs:
    def test_files_of_different_length(self, pairs: Path) -> None:
        (pairs / "en.txt").write_text("one\ntwo\nthree\n")
        (pairs / "fr.txt").write_text("un\ndeux\n")
        data = {"kind": "parallel_text", "source": "en.txt", "target": "fr.txt"}
        write_recipe(pairs, data, "rnn_seq2seq", "sequence_to_sequence", "uneven")
        refused(fmdist(pairs, "train", "uneven.yaml"), "data.target: fr.txt has 2 lines and en.txt has 3")
        assert not (pairs / "runs/uneven/run.json").exists()

    def test_sources_to_answer(self, pairs: Path) -> None:
        refused(fmdist(pairs, "predict", "runs/bad", "--text", ""), "text:1: an empty text")
        strange = fmdist(pairs, "predict", "runs/bad", "--text", "house ☃ " * 200)
        answered(strange, "200 of 1600 tokens are not in the vocabulary", "longer than 256 tokens")


@pytest.fixture(scope="module")
def ratings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained model of ratings from 1 to 5."""
    folder = tmp_path_factory.mktemp("ratings")
    data = {"kind": "interactions", **id_samples.interactions(folder), "rating_range": [1, 5]}
    write_recipe(folder, data, "matrix_factorization", "recommendation")
    succeed(folder, "train", "bad.yaml")
    return folder


class TestRatings:
    def test_a_rating_out_of_range_is_quarantined(self, ratings: Path) -> None:
        known = (ratings / "u.data").read_text()
        (ratings / "nine.data").write_text(known + "100\t501\t9\t5\n")
        done = fmdist(ratings, "train", "bad.yaml", "data.path=nine.data", "name=nine")
        answered(done, "1 of 217 records are bad")
        (bad,) = (ratings / "runs/nine/quarantine.jsonl").read_text().splitlines()
        assert "9" in json.loads(bad)["reason"]
        (ratings / "many.data").write_text(known + "".join(f"100\t{n}\t9\t5\n" for n in range(501, 510)))
        done = fmdist(ratings, "train", "bad.yaml", "data.path=many.data", "name=many")
        refused(done, "9 of 225 records are bad", "allowed: at most 0.01")

    def test_users_and_items_never_seen(self, ratings: Path) -> None:
        (ratings / "ask.csv").write_text("user,item\n100,501\n9999,501\n100,77777\n")
        done = fmdist(ratings, "predict", "runs/bad", "ask.csv", "--json")
        answered(done, "1 user(s) were not in the training", "1 item(s) were not in the training")
        assert all(1 <= answer["values"]["rating"] <= 5 for answer in done.json["predictions"])

    def test_a_question_without_an_item(self, ratings: Path) -> None:
        done = fmdist(ratings, "predict", "runs/bad", "--text", "100")
        refused(done, "a rating needs a user and an item", "a CSV file with the columns user, item")

    def test_what_to_show_a_user_never_seen(self, tmp_path: Path) -> None:
        write_recipe(tmp_path, id_samples.implicit(tmp_path), "bpr", "recommendation")
        succeed(tmp_path, "train", "bad.yaml")
        done = fmdist(tmp_path, "predict", "runs/bad", "--text", "9999")
        assert answered(done, "such as '9999'").count(",") == 9


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained language model."""
    folder = tmp_path_factory.mktemp("running")
    data = {"kind": "text_file", **language_samples.text_file(folder)}
    write_recipe(folder, data, "lstm_lm, hidden: 8", "language_modeling")
    succeed(folder, "train", "bad.yaml")
    return folder


class TestRunningText:
    def test_prompts(self, running: Path) -> None:
        def ask(text: str) -> Done:
            return fmdist(running, "predict", "runs/bad", "--text", text, "--set", "max_tokens=5")

        answered(ask("the Ω cat"), "1 token(s) are not in the vocabulary")
        answered(ask("the cat " * 30), "1 text(s) are longer than 32 tokens; the model sees their end")
        refused(ask(""), "text:1: an empty text")

    def test_a_text_without_two_windows(self, running: Path) -> None:
        (running / "short.txt").write_text("tiny")
        done = fmdist(running, "train", "bad.yaml", "data.path=short.txt", "name=short")
        refused(done, "the text's train part is too short, got '3 tokens'", "lower data.length")


def test_a_model_of_another_form(tmp_path: Path) -> None:
    write_recipe(tmp_path, {"kind": "digits"}, "vae", "reconstruction")
    refused(fmdist(tmp_path, "train", "bad.yaml"), "task 'reconstruction' can't train", "got 'vae'")
    write_recipe(tmp_path, {"kind": "digits"}, "lstm", "classification")
    done = fmdist(tmp_path, "train", "bad.yaml")
    refused(done, "'lstm' reads token sequences")
