"""A running text as data: how it is split, cut into windows and read, and what is refused."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from fmdist.contracts import Draw
from fmdist.data.preprocess import Preprocess
from fmdist.data.splits import DataSplits, Samples
from fmdist.data.text_file import Config
from fmdist.data.tokenizer import BEGIN, UNKNOWN, fit_tokenizer
from fmdist.data.tokenizer_config import TokenizerConfig
from fmdist.data.window_preprocess import PROMPT, WindowPreprocess
from fmdist.data.windows import WindowSplit
from fmdist.errors import DataError

TEXT = "".join(chr(97 + position * position % 23) for position in range(1000))


def config(folder: Path, text: str = TEXT, **settings: Any) -> Config:
    (folder / "text.txt").write_text(text, encoding="utf-8")
    return Config(**{"path": folder / "text.txt", "length": 16, "context": 4, **settings})


def build(folder: Path, text: str = TEXT, **settings: Any) -> DataSplits:
    return config(folder, text, **settings).build(seed=7)


def preprocess_of(length: int) -> WindowPreprocess:
    return WindowPreprocess(length, fit_tokenizer(TokenizerConfig(kind="character"), [TEXT]))


def prompts(*texts: str) -> NDArray[np.void]:
    return np.array([(text,) for text in texts], PROMPT)


def all_of(split: Samples, epoch: int = 0) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    batch = split.__getitems__(Draw(epoch, np.arange(len(split))))
    return batch["tokens"].numpy(), batch["target"].numpy()


@pytest.mark.parametrize("tokens", [2, 9, 16, 17, 18, 100, 101])
@pytest.mark.parametrize("context", [0, 1, 5, 15])
def test_evaluation_scores_every_token_but_the_first_exactly_once(tokens: int, context: int) -> None:
    ids = np.arange(10, 10 + tokens)
    split = WindowSplit.evaluation("test", ids, preprocess_of(16), context)
    inputs_NT, target_NT = all_of(split)
    assert target_NT[target_NT != 0].tolist() == ids[1:].tolist()
    np.testing.assert_array_equal(inputs_NT[target_NT != 0], ids[:-1])
    np.testing.assert_array_equal(target_NT, split.targets)


def test_later_windows_are_given_their_context() -> None:
    split = WindowSplit.evaluation("test", np.arange(10, 60), preprocess_of(16), 5)
    inputs_NT, target_NT = all_of(split)
    assert (target_NT[0] != 0).all()
    assert (target_NT[1:, :5] == 0).all()
    assert inputs_NT[1, :5].tolist() == inputs_NT[0, -5:].tolist()


def test_a_last_window_ends_in_padding() -> None:
    inputs_NT, target_NT = all_of(WindowSplit.evaluation("test", np.arange(10, 30), preprocess_of(16), 0))
    assert inputs_NT[1].tolist() == [26, 27, 28, *[0] * 13]
    assert target_NT[1].tolist() == [27, 28, 29, *[0] * 13]


def test_training_windows_are_cut_elsewhere_in_every_epoch_and_keyed_by_seed_and_epoch() -> None:
    ids = np.arange(10, 210)
    split, again, other = (
        WindowSplit.training("train", ids, preprocess_of(16), 16, seed) for seed in (3, 3, 4)
    )
    inputs_NT, target_NT = all_of(split, epoch=1)
    np.testing.assert_array_equal(target_NT, inputs_NT + 1)
    np.testing.assert_array_equal(np.diff(inputs_NT[:, 0]), 16)
    np.testing.assert_array_equal(inputs_NT, all_of(again, epoch=1)[0])

    def firsts(windows: WindowSplit) -> list[int]:
        return [int(all_of(windows, epoch)[0][0, 0]) for epoch in range(40)]

    assert firsts(split)[0] == 10
    assert len(set(firsts(split))) > 8
    assert set(firsts(split)) <= set(range(10, 26))
    assert firsts(split) != firsts(other)


def test_shifted_windows_stay_inside_the_text() -> None:
    for size in range(32, 50):
        split = WindowSplit.training("train", np.arange(10, 10 + size), preprocess_of(16), 16, 0)
        for epoch in range(30):
            inputs_NT, target_NT = all_of(split, epoch)
            assert (inputs_NT > 0).all()
            assert (target_NT > 0).all()


def test_plain_training_windows_stay_where_they_are() -> None:
    split = WindowSplit.training("train", np.arange(10, 210), preprocess_of(16), 16, 3)
    plain = split.plain()
    assert len(plain) == len(split)
    assert plain.plain() is plain
    np.testing.assert_array_equal(plain.targets, split.targets)
    for epoch in (0, 1):
        np.testing.assert_array_equal(all_of(plain, epoch)[1], plain.targets)


def test_evaluation_windows_may_be_longer_than_those_of_training(tmp_path: Path) -> None:
    data = build(tmp_path, evaluation_length=60, context=40)
    assert all_of(data.train)[0].shape[1] == 16
    assert all_of(data.validation)[0].shape == (3, 60)
    assert data.spec.inputs[0].longest == 60
    whole = build(tmp_path, evaluation_length=5000)
    assert all_of(whole.validation)[0].shape == (1, 100)


def test_the_text_is_split_in_its_order(tmp_path: Path) -> None:
    data = build(tmp_path)
    assert data.record["characters"] == {"train": 800, "validation": 100, "test": 100}
    text = "".join(record["text"] for record in data.test.raw(np.arange(len(data.test))))
    assert text.startswith(TEXT[900:915])
    assert data.spec.inputs[0].longest == 16
    assert data.spec.target.size == data.spec.inputs[0].size == 4 + len(set(TEXT[:800]))
    assert data.spec.size == len(data.train)
    assert data.test.sources[:2] == ["test, token 0", "test, token 12"]


def test_windows_read_back_as_the_text(tmp_path: Path) -> None:
    data = build(tmp_path, context=0)
    windows = data.validation.raw(np.arange(len(data.validation)))
    assert "".join(windows["text"]) == TEXT[800:899]  # the last character is only a target


def test_the_tokenizer_knows_the_training_part_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        data = build(tmp_path, TEXT + "Ω")
    assert data.record["unknown"] == {"train": 0, "validation": 0, "test": 1}
    assert "1 of the test part's" in caplog.text
    assert (data.test.targets == UNKNOWN).sum() == 1


def test_the_texts_hash_is_recorded_and_the_same_text_gives_the_same_splits(tmp_path: Path) -> None:
    first, second = build(tmp_path), build(tmp_path)
    changed = build(tmp_path, TEXT[:-1] + "a")
    assert first.record == second.record
    assert first.record["sha256_text"] != changed.record["sha256_text"]
    assert first.record["sha256"]["train"] == changed.record["sha256"]["train"]
    assert first.record["sha256"]["test"] != changed.record["sha256"]["test"]


def test_several_files_are_one_text(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.txt" for name in "ab"]
    paths[0].write_text("first" * 100)
    paths[1].write_text("second" * 100)
    data = Config(path=paths, length=16, context=0).build(seed=0)
    one = build(tmp_path, "first" * 100 + "\n" + "second" * 100, context=0)
    assert data.record["sha256"] == one.record["sha256"]


def test_byte_pairs_make_fewer_tokens(tmp_path: Path) -> None:
    data = build(tmp_path, "one two three " * 100, tokenizer={"kind": "bpe", "vocabulary": 280})
    assert data.record["tokens"]["train"] < data.record["characters"]["train"] / 2
    assert data.record["vocabulary"] <= 280


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "empty"),
        (b" \n\n", "empty"),
        (b"caf\xe9 " * 100, "not UTF-8 at byte 3"),
        (b"short", "train part is too short"),
        (b"ab" * 8 + b"c", "train part is too short"),
    ],
)
def test_texts_that_cant_be_used(tmp_path: Path, content: bytes, complaint: str) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    with pytest.raises(DataError, match=complaint):
        Config(path=path, length=16, context=0).build(seed=0)


@pytest.mark.parametrize("name", ["absent.txt", "."])
def test_a_file_that_isnt_there(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match="no such file"):
        Config(path=tmp_path / name).build(seed=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"context": 16},
        {"evaluation_length": 15},
        {"clean": {"outliers": "iqr"}},
        {"clean": {"duplicates": "keep"}},
        {"normalize": False},
        {"augment": {"rotate": 10}},
        {"split": {"train": 0.9}},
        {"path": []},
    ],
)
def test_settings_that_mean_nothing_for_a_text(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        config(tmp_path, **settings)


def test_an_evaluation_window_shorter_than_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ValidationError, match=r"evaluation_length \(15\) must be at least length \(16\).*lower data.length"
    ):
        config(tmp_path, evaluation_length=15)
    assert build(tmp_path, evaluation_length=16).spec.inputs[0].longest == 16


def test_prompts_begin_and_are_padded_at_the_end() -> None:
    found = preprocess_of(16)(prompts("abc", "", "a"))
    assert found["tokens"].shape == (3, 4)
    assert (found["tokens"][:, 0] == BEGIN).all()
    assert (found["tokens"] != 0).sum(axis=1).tolist() == [4, 1, 2]
    assert found["target"][0].tolist() == [*found["tokens"][0, 1:], 0]


def test_a_prompt_beyond_the_context_keeps_its_end(caplog: pytest.LogCaptureFixture) -> None:
    preprocess = preprocess_of(4)
    found = preprocess(prompts(TEXT[:10]))
    assert found["tokens"].tolist() == [preprocess.text.encode([TEXT[6:10]])[0].tolist()]
    assert "longer than 4 tokens" in caplog.text


def test_unknown_characters_of_a_prompt_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    found = preprocess_of(16)(prompts("aΩbΩ"))
    assert (found["tokens"] == UNKNOWN).sum() == 2
    assert "2 token(s)" in caplog.text


def test_only_texts_are_prompts() -> None:
    with pytest.raises(DataError, match="not rows of texts"):
        preprocess_of(16)(np.zeros((1, 4)))


def test_preprocessing_survives_json_and_pickle() -> None:
    preprocess = preprocess_of(16)
    for copy in (Preprocess.from_json(preprocess.to_json()), pickle.loads(pickle.dumps(preprocess))):
        assert copy == preprocess
        np.testing.assert_array_equal(copy(prompts("abc"))["tokens"], preprocess(prompts("abc"))["tokens"])
