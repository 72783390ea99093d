"""Language modelling: losses and scores against closed forms, sampling, and generation with a known model."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fmdist.contracts import DataSpec, InputSpec, TargetSpec
from fmdist.data.tokenizer import BEGIN, END, TextTokenizer, fit_tokenizer
from fmdist.data.tokenizer_config import TokenizerConfig
from fmdist.errors import CapabilityError, UsageError
from fmdist.tasks import decoding
from fmdist.tasks.decoding import language
from fmdist.tasks.decoding.run import Run
from fmdist.tasks.decoding.sampling import Sampling, probabilities
from fmdist.tasks.language_modeling import Config, LanguageModeling

ALPHABET = "abcdefgh"
TOKENIZER = fit_tokenizer(TokenizerConfig(kind="character"), ["hgfedcba"])
SIZE = 4 + len(ALPHABET)
CONTEXT = 6


class Fixed(nn.Module):
    """Scores that depend on the token alone: row ``tokens`` of a table (V, V)."""

    def __init__(self, logits_VV: Tensor) -> None:
        super().__init__()
        self.table = nn.Parameter(logits_VV)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return self.table[tokens_BT]


class Builder:
    """Builds a `Fixed` module."""

    def __init__(self, logits_VV: Tensor) -> None:
        self.logits_VV = logits_VV

    def build(self, spec: DataSpec, outputs: int) -> nn.Module:
        assert outputs == SIZE
        return Fixed(self.logits_VV)

    def trained(self, run: Path) -> nn.Module:
        raise NotImplementedError


def task_of(logits_VV: Tensor, **settings: Any) -> LanguageModeling:
    tokens = InputSpec("tokens", (None,), "int64", SIZE, CONTEXT)
    spec = DataSpec((tokens,), TargetSpec("tokens", size=SIZE), tokenizers={"tokens": TOKENIZER})
    return Config(**settings).build(spec, Builder(logits_VV))


def ids(text: str) -> NDArray[np.int64]:
    return TextTokenizer(TOKENIZER).encode([text])[0]


def batch_of(*texts: str) -> dict[str, NDArray[np.int64]]:
    """Return texts as tokens, targets and indices; each ends in padding if it isn't the longest."""
    longest = max(map(len, texts))
    tokens_BT = np.zeros((len(texts), longest + 1), np.int64)
    for row, text in enumerate(texts):
        tokens_BT[row, : len(text) + 1] = [BEGIN, *ids(text)]
    target_BT = np.pad(tokens_BT[:, 1:], ((0, 0), (0, 1)))
    return {"tokens": tokens_BT, "target": target_BT, "index": np.arange(len(texts))}


def tensors(batch: Mapping[str, NDArray[np.int64]]) -> dict[str, Tensor]:
    return {name: torch.from_numpy(value) for name, value in batch.items()}


def runner(task: LanguageModeling) -> Run:
    def run(inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        with torch.no_grad():
            outputs: Tensor = task.served(task.roles())(torch.from_numpy(inputs["tokens"]))
        return np.asarray(outputs.numpy())

    return run


def random_task(**settings: Any) -> LanguageModeling:
    return task_of(torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(1)), **settings)


def next_letter() -> LanguageModeling:
    """A model that is sure: after a letter comes the next one, after h the end, after begin an a."""
    logits_VV = torch.zeros(SIZE, SIZE)
    chain = [BEGIN, *ids(ALPHABET).tolist(), END]
    for before, after in itertools.pairwise(chain):
        logits_VV[before, after] = 50.0
    return task_of(logits_VV)


def test_loss_of_a_uniform_model_is_the_logarithm_of_the_vocabulary() -> None:
    task = task_of(torch.zeros(SIZE, SIZE))
    batch = tensors(batch_of("abc", "hgfed"))
    out = task.loss(task.roles(), batch, torch.Generator())
    assert out.count == task.count(batch) == 8
    assert out.loss_sum.item() == pytest.approx(8 * math.log(SIZE), rel=1e-6)


def test_rows_are_the_summed_loss_of_each_window_and_padding_changes_nothing() -> None:
    task = random_task()
    alone = decoding.rows(task.decoding(), runner(task), batch_of("cab"))
    together = decoding.rows(task.decoding(), runner(task), batch_of("cab", "hgfedcba"))
    loss = task.loss(task.roles(), tensors(batch_of("cab")), torch.Generator())
    np.testing.assert_allclose(alone[0], together[0], rtol=1e-6)
    assert alone[0, language.NLL] == pytest.approx(loss.loss_sum.item(), rel=1e-6)
    assert alone[0, [language.TOKENS, language.CHARACTERS]].tolist() == [3, 3]


def test_rows_are_the_same_however_many_windows_the_model_sees_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task, batch = random_task(), batch_of("cab", "hgfedcba", "e", "dd")
    at_once = decoding.rows(task.decoding(), runner(task), batch)
    monkeypatch.setattr(language, "LOGITS", 1)
    np.testing.assert_allclose(decoding.rows(task.decoding(), runner(task), batch), at_once, rtol=1e-6)


def test_metrics_of_rows_made_by_hand() -> None:
    metrics = random_task().metrics()
    rows = torch.tensor([[2.0, 4.0, 8.0, 1.0], [4.0, 2.0, 1.0, 2.0]])
    metrics.update(rows[:1], torch.zeros(1, 4))
    metrics.update(rows[1:], torch.zeros(1, 4))
    found = {name: float(value) for name, value in metrics.compute().items()}
    assert found == pytest.approx(
        {
            "loss": 1.0,
            "perplexity": math.e,
            "bits_per_character": 6 / math.log(2) / 9,
            "accuracy": 0.5,
        }
    )


def test_label_smoothing_is_trained_with_and_not_scored_with() -> None:
    plain, smooth = random_task(), random_task(label_smoothing=0.3)
    batch = batch_of("abcabc")
    losses = [task.loss(task.roles(), tensors(batch), torch.Generator()).loss_sum for task in (plain, smooth)]
    logits_TV = smooth.outputs(smooth.roles(), tensors(batch))[0, :-1].log_softmax(dim=1)
    target_T = torch.from_numpy(ids("abcabc"))
    expected = 0.7 * functional.nll_loss(logits_TV, target_T, reduction="sum") - 0.3 * logits_TV.mean(1).sum()
    assert losses[1].item() == pytest.approx(expected.item(), rel=1e-5)
    assert losses[0].item() != pytest.approx(losses[1].item(), rel=1e-4)
    rows = [decoding.rows(task.decoding(), runner(task), batch) for task in (plain, smooth)]
    np.testing.assert_array_equal(rows[0], rows[1])


def test_baseline_is_the_frequency_of_tokens_in_the_training_text() -> None:
    class Part:
        def __init__(self, text: str) -> None:
            self.targets = batch_of(text)["target"]

        def __len__(self) -> int:
            return 1

        def __getitems__(self, draw: Any) -> Any:
            raise NotImplementedError

    rows = random_task().baseline(Part("aaab"), Part("ba"))
    total = 4 + SIZE - 1  # each token but padding is counted once more
    assert rows[0].tolist() == pytest.approx([-math.log(2 / total) - math.log(4 / total), 2, 2, 1])


@pytest.mark.parametrize("kind", ["character", "bpe"])
def test_characters_of_the_tokens_are_those_of_the_text(kind: Any) -> None:
    text = "Zoë fährt für 5 €, 東京へ 🙂, aaaa aaaa aaaa…\n" * 3
    tokenizer = fit_tokenizer(TokenizerConfig(kind=kind, vocabulary=300), [text])
    counts = np.array(language.token_characters(tokenizer))
    assert counts[TextTokenizer(tokenizer).encode([text])[0]].sum() == len(text)
    assert counts[[0, 2, 3]].sum() == 0


def test_an_unknown_character_counts_as_one() -> None:
    counts = np.array(language.token_characters(TOKENIZER))
    assert counts[ids("a?b")].sum() == 3


def test_words_count_with_one_space_each() -> None:
    tokenizer = fit_tokenizer(TokenizerConfig(kind="word"), ["one three"])
    counts = np.array(language.token_characters(tokenizer))
    assert counts[TextTokenizer(tokenizer).encode(["one three"])[0]].sum() == len("one three ")


def test_other_data_is_refused() -> None:
    spec = DataSpec((InputSpec("tokens", (None,), "int64", SIZE, 4),), TargetSpec("class", ("a", "b")))
    with pytest.raises(CapabilityError, match="text_file"):
        Config().build(spec, Builder(torch.zeros(SIZE, SIZE)))


def test_an_unknown_primary_metric_is_refused() -> None:
    with pytest.raises(CapabilityError, match="bits_per_character"):
        random_task(primary="bleu")


def generate(task: LanguageModeling, *prompts: str, **options: Any) -> list[str]:
    batch = batch_of(*prompts)
    answers = decoding.answer(task.decoding(), runner(task), batch, options)
    return [answer["text"] for answer in answers]


def test_text_goes_on_from_the_prompt_until_its_end() -> None:
    answers = decoding.answer(next_letter().decoding(), runner(next_letter()), batch_of("abc", "", "g"))
    assert [answer["text"] for answer in answers] == ["defgh", "abcdefgh", "h"]
    assert [answer["tokens"] for answer in answers] == [6, 9, 2]


def test_no_more_tokens_than_asked_for() -> None:
    assert generate(next_letter(), "abc", "g", max_tokens=2) == ["de", "h"]


def test_the_model_never_sees_more_than_its_context() -> None:
    task = next_letter()
    plain = runner(task)
    seen = []

    def run(inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        seen.append(inputs["tokens"].shape[1])
        return plain(inputs)

    decoding.answer(task.decoding(), run, batch_of("abcd"))
    assert seen == [5, CONTEXT, CONTEXT, CONTEXT, CONTEXT]


def test_draws_are_keyed_by_seed_and_prompt_and_not_by_the_batch() -> None:
    task = random_task()
    both = generate(task, "ab", "abcdefg", max_tokens=20)
    assert generate(task, "ab", max_tokens=20) == both[:1]
    assert generate(task, "ab", max_tokens=20, seed=1) != both[:1]


def test_special_tokens_other_than_the_end_are_never_generated() -> None:
    logits_VV = torch.zeros(SIZE, SIZE)
    logits_VV[:, :END] = 30.0
    logits_VV[:, END] = -30.0
    (text,) = generate(task_of(logits_VV), "a", max_tokens=30)
    assert len(text) == 30


def test_temperature_zero_takes_the_likeliest() -> None:
    share_V = probabilities(np.array([0.1, 0.7, 0.7, 0.3]), Sampling(temperature=0))
    assert share_V.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({}, [0, 1, 2, 3]),
        ({"top_k": 1}, [0]),
        ({"top_k": 9}, [0, 1, 2, 3]),
        ({"top_p": 0.5}, [0]),
        ({"top_p": 0.51}, [0, 1]),
        ({"top_p": 1e-9}, [0]),
        ({"top_k": 2, "top_p": 0.9}, [0, 1]),
        ({"top_k": 2, "top_p": 0.6}, [0]),
    ],
)
def test_top_k_and_top_p_keep_the_likeliest(settings: dict[str, Any], kept: list[int]) -> None:
    start_V = np.array([0.5, 0.25, 0.15, 0.1])
    share_V = probabilities(np.log(start_V), Sampling(**settings))
    expected_V = np.where(np.isin(np.arange(4), kept), start_V, 0)
    np.testing.assert_allclose(share_V, expected_V / expected_V.sum(), rtol=1e-12)


def test_temperature_divides_the_logits() -> None:
    logits_V = np.array([1.0, 2.0, 4.0])
    expected_V = np.exp(logits_V / 0.5)
    np.testing.assert_allclose(
        probabilities(logits_V, Sampling(temperature=0.5)), expected_V / expected_V.sum(), rtol=1e-12
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", "hot"),
        ("temperature", math.nan),
        ("top_k", 1.5),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("max_tokens", 0),
        ("max_tokens", True),
        ("seed", -1),
    ],
)
def test_a_wrong_option_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name):
        generate(random_task(), "a", **{name: value})


def test_an_unknown_option_is_refused_with_a_guess() -> None:
    with pytest.raises(UsageError, match="Did you mean 'temperature'"):
        generate(random_task(), "a", temprature=1)


def test_answers_for_windows_and_their_errors() -> None:
    rule = random_task().decoding()
    rows = np.array([[8 * math.log(2), 2, 4, 1], [0, 0, 0, 0]], np.float32)
    first, second = decoding.decode(rule, rows)
    assert first == pytest.approx({"bits_per_character": 2.0, "perplexity": 16.0, "accuracy": 0.5}, rel=1e-6)
    assert second == {"bits_per_character": 0.0, "perplexity": 1.0, "accuracy": 0.0}
    assert decoding.errors(rule, rows, np.zeros((2, 3))) == pytest.approx([2.0, 0.0])
