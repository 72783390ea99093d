"""Tokenizers: what they learn, what they give back, and what never confuses them."""

from __future__ import annotations

import ast
import copy
import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from pydantic import ValidationError

from fmdist.data.tokenizer import BEGIN, END, PADDING, SPECIAL, UNKNOWN, TextTokenizer, fit_tokenizer
from fmdist.data.tokenizer_config import TokenizerConfig
from fmdist.errors import DataError

TEXTS = ["The cat sat on the mat.", "The dog, the cat!", "A mat"]
KINDS = ("character", "word", "bpe")

each_kind = pytest.mark.parametrize("kind", KINDS)


def fitted(kind: str, texts: list[str] | None = None, **options: object) -> TextTokenizer:
    size = {"vocabulary": 300} if kind == "bpe" else {}
    config = TokenizerConfig.model_validate({"kind": kind, **size, **options})
    return TextTokenizer(fit_tokenizer(config, TEXTS if texts is None else texts))


@each_kind
def test_special_tokens_come_first(kind: str) -> None:
    vocabulary = json.loads(fitted(kind).json)["model"]["vocab"]
    assert [vocabulary[name] for name in SPECIAL] == [PADDING, UNKNOWN, BEGIN, END] == [0, 1, 2, 3]


@pytest.mark.parametrize("kind", ["character", "bpe"])
@pytest.mark.parametrize("text", [*TEXTS, "  two  spaces ", "line\nline\ttab"])
def test_nothing_is_lost(kind: str, text: str) -> None:
    tokenizer = fitted(kind, [*TEXTS, "  two  spaces ", "line\nline\ttab"])
    assert tokenizer.decode(tokenizer.encode([text])[0]) == text


def test_words_and_punctuation_are_tokens_of_their_own() -> None:
    tokenizer = fitted("word")
    (ids,) = tokenizer.encode(["The mat!"])
    assert len(ids) == 3
    assert tokenizer.decode(ids) == "The mat !"


def test_bytes_leave_nothing_unknown() -> None:
    tokenizer = fitted("bpe")
    text = "Grüße, 日本 🙂"
    (ids,) = tokenizer.encode([text])
    assert UNKNOWN not in ids
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(("kind", "text"), [("character", "caß"), ("word", "The cow")])
def test_the_unknown_has_its_token(kind: str, text: str) -> None:
    (ids,) = fitted(kind).encode([text])
    assert ids[-1] == UNKNOWN
    assert (ids[:-1] > END).all()


@each_kind
@pytest.mark.parametrize("name", SPECIAL)
def test_a_text_may_hold_the_name_of_a_special_token(kind: str, name: str) -> None:
    tokenizer = fitted(kind, [*TEXTS, "< / > s p a d u n k", "pad unk s / < >"])
    for same in (tokenizer, pickle.loads(pickle.dumps(tokenizer)), copy.deepcopy(tokenizer)):
        (ids,) = same.encode([f"the{name}mat"])
        assert len(ids) > 1
        assert not set(ids.tolist()) & {PADDING, BEGIN, END}


@each_kind
def test_decoding_stops_at_the_end(kind: str) -> None:
    tokenizer = fitted(kind)
    (ids,) = tokenizer.encode(["The cat"])
    framed = np.concatenate([[BEGIN], ids, [END], ids, [PADDING]])
    assert tokenizer.decode(framed) == tokenizer.decode(ids) == "The cat"


@each_kind
def test_the_json_text_is_the_tokenizer(kind: str) -> None:
    tokenizer = fitted(kind)
    again = TextTokenizer(tokenizer.json)
    assert again.size == tokenizer.size
    assert [ids.tolist() for ids in again.encode(TEXTS)] == [ids.tolist() for ids in tokenizer.encode(TEXTS)]
    assert all(ids.dtype == np.int64 and ids.max() < again.size for ids in again.encode(TEXTS))


def test_the_most_frequent_are_kept() -> None:
    tokenizer = fitted("word", ["b b b a a c"], vocabulary=6)
    assert tokenizer.size == 6
    assert (tokenizer.encode(["b a c"])[0] == UNKNOWN).tolist() == [False, False, True]


def test_the_rare_are_left_out() -> None:
    assert (fitted("character", ["aab"], min_count=2).encode(["ab"])[0] == UNKNOWN).tolist() == [False, True]


def test_lower_case_and_composed_letters() -> None:
    tokenizer = fitted("word", ["the caf\u00e9"], lowercase=True)
    assert tokenizer.encode(["THE CAFE\u0301"])[0].tolist() == tokenizer.encode(["the caf\u00e9"])[0].tolist()
    assert UNKNOWN not in tokenizer.encode(["The"])[0]


def test_fitting_is_the_same_in_every_process() -> None:
    code = "from tests.unit.data.test_tokenizer import *; print([fitted(kind).json for kind in KINDS])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ast.literal_eval(done.stdout) == [fitted(kind).json for kind in KINDS]


def test_fitting_leaves_the_environment_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    fitted("word")
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    fitted("word")
    assert "TOKENIZERS_PARALLELISM" not in os.environ


@pytest.mark.parametrize("kind", ["character", "word"])
def test_texts_that_teach_nothing_are_refused(kind: str) -> None:
    with pytest.raises(DataError, match=f"no {kind} of the training split occurs often enough"):
        fitted(kind, ["ab"], min_count=2)


def test_a_byte_vocabulary_has_a_smallest_size() -> None:
    with pytest.raises(ValidationError, match="at least 260"):
        TokenizerConfig(kind="bpe", vocabulary=259)
    assert fitted("bpe", vocabulary=260).size == 260


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not the JSON text of a tokenizer"),
        ("{}", "not the JSON text of a tokenizer"),
        (
            '{"model": {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"}}',
            "doesn't start with fmdist's special tokens",
        ),
    ],
)
def test_what_is_no_tokenizer_of_ours_is_refused(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        TextTokenizer(text)
