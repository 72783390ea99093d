"""Sequence to sequence: loss and scores against references, and search with models that are known."""

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
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from torch import Tensor, nn
from torch.nn import functional

from fmdist.contracts import DataSpec, Draw, InputSpec, TargetSpec
from fmdist.data.tokenizer import BEGIN, END, TextTokenizer, fit_tokenizer
from fmdist.data.tokenizer_config import TokenizerConfig
from fmdist.errors import CapabilityError, UsageError
from fmdist.tasks import decoding
from fmdist.tasks.decoding import beam, translation
from fmdist.tasks.decoding.beam import Search, search_texts
from fmdist.tasks.decoding.run import Run
from fmdist.tasks.sequence_to_sequence import Config, CorpusScore, SequenceToSequence

LETTERS = "abcdefgh "
TOKENIZER = fit_tokenizer(TokenizerConfig(kind="character"), [LETTERS])
TEXT = TextTokenizer(TOKENIZER)
SIZE = TEXT.size
LONGEST = 8
NAMES = ("source", "prefix")


class Copier(nn.Module):
    """Scores that depend on the source's token at the same place, and a little on the last one written."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.table = nn.Parameter(torch.randn(SIZE, SIZE, generator=random) + 4 * torch.eye(SIZE))
        self.last = nn.Parameter(torch.randn(SIZE, SIZE, generator=random))

    def forward(self, source_BS: Tensor, prefix_BT: Tensor) -> Tensor:
        short = max(0, prefix_BT.shape[1] - source_BS.shape[1])
        at_BT = functional.pad(source_BS, (0, short), value=END)[:, : prefix_BT.shape[1]]
        return self.table[at_BT] + self.last[prefix_BT]


class Builder:
    """Builds a `Copier`."""

    def build(self, spec: DataSpec, outputs: int) -> nn.Module:
        assert outputs == SIZE
        return Copier()

    def trained(self, run: Path) -> nn.Module:
        raise NotImplementedError


def task_of(**settings: Any) -> SequenceToSequence:
    inputs = tuple(InputSpec(name, (None,), "int64", SIZE, LONGEST) for name in NAMES)
    tokenizers = {"source": TOKENIZER, "target": TOKENIZER}
    spec = DataSpec(inputs, TargetSpec("tokens", size=SIZE), tokenizers=tokenizers)
    return Config.model_validate(settings).build(spec, Builder())


def padded(texts: list[list[int]], width: int = 0) -> NDArray[np.int64]:
    ids = np.zeros((len(texts), max(width, *map(len, texts))), np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
    return ids


def ids_of(texts: list[str]) -> list[list[int]]:
    return [ids.tolist() for ids in TEXT.encode(texts)]


def batch_of(sources: list[str], targets: list[str]) -> dict[str, NDArray[np.int64]]:
    return {
        "source": padded([[*ids, END] for ids in ids_of(sources)]),
        "prefix": padded([[BEGIN, *ids] for ids in ids_of(targets)]),
        "target": padded([[*ids, END] for ids in ids_of(targets)]),
        "index": np.arange(len(sources)),
    }


class Part:
    """A data set in memory."""

    def __init__(self, sources: list[str], targets: list[str]) -> None:
        self.batch = batch_of(sources, targets)
        self.targets = self.batch["target"]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitems__(self, draw: Draw) -> dict[str, Any]:
        return {name: torch.from_numpy(value[draw.indices]) for name, value in self.batch.items()}


def run_of(model: nn.Module) -> Run:
    def run(inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        with torch.no_grad():
            outputs: Tensor = model(*(torch.from_numpy(inputs[name]) for name in NAMES))
        return outputs.numpy()

    return run


SOURCES = ["abc", "h", "dead beef"[:7], "a cab"]
TARGETS = ["cab", "head", "ab", "bad ace"]


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_and_rows_equal_torch(smoothing: float) -> None:
    task = task_of(label_smoothing=smoothing)
    model, batch = task.roles()["model"], batch_of(SOURCES, TARGETS)
    tensors = {name: torch.from_numpy(value) for name, value in batch.items()}
    logits = model(tensors["source"], tensors["prefix"])
    expected = [
        functional.cross_entropy(
            row[: len(ids)], torch.tensor(ids), reduction="sum", label_smoothing=smoothing
        )
        for row, ids in zip(logits, ([*ids, END] for ids in ids_of(TARGETS)), strict=True)
    ]
    out = task.loss(task.roles(), tensors, torch.Generator())
    assert out.count == sum(map(len, TARGETS)) + len(TARGETS) == task.count(tensors)
    torch.testing.assert_close(out.loss_sum, sum(expected, torch.tensor(0.0)))

    rows = decoding.rows(task.decoding(), run_of(model), batch)
    assert rows.shape == (4, translation.TEXT + LONGEST)
    np.testing.assert_allclose(rows[:, 0], [float(loss.detach()) for loss in expected], rtol=1e-5)
    assert rows[:, 1].tolist() == [len(text) + 1 for text in TARGETS]
    mean = task.metrics()["loss"]
    mean.update(torch.from_numpy(rows), tensors["target"])
    assert float(mean.compute()) == pytest.approx(out.loss_sum.item() / out.count, rel=1e-5)


def test_rows_do_not_depend_on_how_many_are_run_together(monkeypatch: pytest.MonkeyPatch) -> None:
    task, batch = task_of(), batch_of(SOURCES, TARGETS)
    together = decoding.rows(task.decoding(), run_of(task.roles()["model"]), batch)
    monkeypatch.setattr(translation, "LOGITS", 1)
    alone = decoding.rows(task.decoding(), run_of(task.roles()["model"]), batch)
    np.testing.assert_allclose(together, alone, rtol=1e-6)


def step_by_step(model: nn.Module, source: list[int], limit: int) -> list[int]:
    """Write greedily, in torch."""
    written = [BEGIN]
    while len(written) <= limit and written[-1] != END:
        logits = model(torch.tensor([source]), torch.tensor([written]))[0, -1]
        written.append(END + int(logits[END:].argmax()))
    return written[1:]


def test_greedy_search_takes_the_likeliest_token_each_time() -> None:
    model = Copier()
    sources = batch_of(SOURCES, TARGETS)["source"]
    found = search_texts(run_of(model), NAMES, sources, Search(1, 0.6, LONGEST))
    expected = padded([step_by_step(model, row.tolist(), LONGEST) for row in sources])
    assert np.array_equal(found, expected)
    assert len(set(map(tuple, found))) == len(found), "the texts differ"


def log_p_of(model: nn.Module, source: list[int], text: tuple[int, ...]) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([source]), torch.tensor([[BEGIN, *text[:-1]]]))[0]
    return float(logits.log_softmax(dim=1)[range(len(text)), list(text)].sum())


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_of_all_texts(alpha: float) -> None:
    model, limit, source = Copier(), 3, ids_of(["ab"])[0]
    tokens = range(END, SIZE)
    ended = [
        (*text, END)
        for length in range(limit)
        for text in itertools.product(range(END + 1, SIZE), repeat=length)
    ]
    running = [text for text in itertools.product(tokens, repeat=limit) if END not in text]
    penalties = {length: ((5 + length) / 6) ** alpha for length in range(1, limit + 1)}
    best = max(ended + running, key=lambda text: log_p_of(model, source, tuple(text)) / penalties[len(text)])
    found = search_texts(run_of(model), NAMES, np.array([source]), Search(100, alpha, limit))
    assert tuple(found[0][found[0] != 0]) == tuple(best)


def test_a_beam_of_several_sources_equals_one_of_each() -> None:
    run, sources = run_of(Copier()), batch_of(SOURCES, TARGETS)["source"]
    search = Search(3, 0.6, LONGEST)
    together = search_texts(run, NAMES, sources, search)
    for row, text in zip(sources, together, strict=True):
        alone = search_texts(run, NAMES, row[None], search)[0]
        assert alone[alone != 0].tolist() == text[text != 0].tolist()


def test_ended_texts_are_not_run_again() -> None:
    calls: list[int] = []

    def run(inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        calls.append(len(inputs["source"]))
        logits = np.zeros((*inputs["prefix"].shape, SIZE), np.float32)
        logits[:, :, [0, 1, 2]] = 9  # padding, unknown and begin are never written
        logits[:, :, 5] = 1
        longer = inputs["prefix"].shape[1] >= inputs["source"][:, 0]
        logits[longer, -1, END] = 2
        return logits

    found = search_texts(run, NAMES, np.array([[1], [3]]), Search(1, 0.0, 10))
    assert found.tolist() == [[END, 0, 0], [5, 5, END]]
    assert calls == [2, 1, 1]


def test_the_longest_text_of_training_is_the_longest_written() -> None:
    task = task_of()
    run = run_of(task.roles()["model"])
    batch = batch_of(["abcdefgh abcdefgh"], ["a"])
    assert len(decoding.answer(task.decoding(), run, batch)[0]["text"]) == LONGEST
    assert len(decoding.answer(task.decoding(), run, batch, {"max_length": 3})[0]["text"]) == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("beam_width", 0),
        ("beam_width", 1.5),
        ("length_penalty", -1),
        ("length_penalty", "x"),
        ("max_length", True),
    ],
)
def test_options_are_checked(name: str, value: object) -> None:
    task = task_of()
    with pytest.raises(UsageError, match=name):
        decoding.answer(task.decoding(), run_of(task.roles()["model"]), batch_of(["a"], ["a"]), {name: value})


def rows_of(texts: list[str], width: int = 22) -> NDArray[np.float32]:
    ids = padded([[*ids, END] for ids in ids_of(texts)], width)
    return np.concatenate([np.ones((len(texts), 2)), ids], axis=1).astype(np.float32)


WRITTEN = ["head bag had a bed", "a cab fed a fad", "", "a dead bee", "fad"]
TRUTH = ["head bag had a bed", "a bad cab fed a fad", "bee", "dead bee", "gag"]


@pytest.mark.parametrize(("name", "reference"), [("bleu", BLEU()), ("chrf", CHRF())])
def test_scores_equal_sacrebleus_own(name: str, reference: BLEU | CHRF) -> None:
    metric = task_of().metrics()[name]
    target = torch.from_numpy(padded([[*ids, END] for ids in ids_of(TRUTH)]))
    rows = torch.from_numpy(rows_of(WRITTEN))
    metric.update(rows[:2], target[:2])
    metric.update(rows[2:], target[2:])
    expected = reference.corpus_score(WRITTEN, [TRUTH]).score
    assert 0 < expected < 100
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-9)

    again = [4, 0, 0, 3]
    metric.reset()
    metric.update(rows[again], target[again])
    resampled = reference.corpus_score([WRITTEN[row] for row in again], [[TRUTH[row] for row in again]]).score
    assert float(metric.compute()) == pytest.approx(resampled, abs=1e-9)


def test_a_target_with_an_unknown_character_is_never_met() -> None:
    target = torch.from_numpy(padded([[*TEXT.encode(["fa?"])[0].tolist(), END]]))
    metrics = task_of().metrics()
    metrics.update(torch.from_numpy(rows_of(["fa"])), target)
    assert float(metrics["exact_match"].compute()) == 0
    score = CorpusScore("chrf", TOKENIZER)
    score.update(torch.from_numpy(rows_of(["fa"])), target)
    assert float(score.compute()) == pytest.approx(CHRF().corpus_score(["fa"], [["fa\ufffd"]]).score)


def test_exact_match_counts_whole_texts() -> None:
    metric = task_of().metrics()["exact_match"]
    target = torch.from_numpy(padded([[*ids, END] for ids in ids_of(TRUTH)], width=24))
    metric.update(torch.from_numpy(rows_of(WRITTEN)), target)
    assert float(metric.compute()) == 0.2


def test_the_baseline_copies_the_source() -> None:
    task, part = task_of(), Part(["cab", "bad"], ["cab", "dab"])
    rows = task.baseline(Part(["x", "y"], ["abb", "b"]), part)
    assert [answer["text"] for answer in decoding.decode(task.decoding(), rows)] == ["cab", "bad"]
    metrics = task.metrics()
    metrics.update(torch.from_numpy(rows), torch.from_numpy(part.targets))
    assert float(metrics["exact_match"].compute()) == 0.5
    # Training targets hold a, b, b, end and b, end: each id counts once more.
    counts = np.ones(SIZE) + np.bincount([*ids_of(["abbb"])[0], END, END], minlength=SIZE)
    truth = part.targets[part.targets != 0]
    expected = -np.log(counts[truth] / counts.sum()).mean()
    assert float(metrics["loss"].compute()) == pytest.approx(expected, rel=1e-5)


def test_errors_are_losses_per_token() -> None:
    rows = np.array([[6.0, 3.0, END], [0.0, 0.0, END]], np.float32)
    assert translation.errors({}, rows, np.zeros((2, 1))).tolist() == [2.0, 0.0]


def test_other_data_and_metrics_are_refused() -> None:
    spec = DataSpec((InputSpec("row", (3,)),), TargetSpec("value", ("y",)))
    with pytest.raises(CapabilityError, match="pairs of texts"):
        Config().build(spec, Builder())
    with pytest.raises(CapabilityError, match="no such metric"):
        task_of(primary="accuracy")


def test_length_penalty_is_that_of_wu() -> None:
    assert beam.penalty(np.array([1, 7, 25]), 0.5).tolist() == [1.0, math.sqrt(2), math.sqrt(5)]
