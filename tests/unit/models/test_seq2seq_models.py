"""Sequence-to-sequence models: masks, attention and states against torch's own layers and closed forms."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fmdist.contracts import DataSpec, InputSpec, TargetSpec
from fmdist.errors import CapabilityError
from fmdist.models import rnn_seq2seq, transformer_seq2seq
from fmdist.models.rnn_seq2seq import RnnSeq2Seq
from fmdist.models.sequence import real_tokens
from fmdist.models.transformer_seq2seq import TransformerSeq2Seq

KINDS = [transformer_seq2seq.Config, rnn_seq2seq.Config]
OUTPUTS = 9
SPEC = DataSpec(
    (InputSpec("source", (None,), "int64", 11, 12), InputSpec("prefix", (None,), "int64", OUTPUTS, 10)),
    TargetSpec("tokens", size=OUTPUTS),
)

each_kind = pytest.mark.parametrize("kind", KINDS, ids=["transformer", "rnn"])


def built(kind: Any, **settings: Any) -> Any:
    torch.manual_seed(0)
    return kind(**settings).build(SPEC, OUTPUTS).eval()


def ids(*rows: list[int]) -> Tensor:
    tokens = np.zeros((len(rows), max(map(len, rows))), np.int64)
    for row, values in enumerate(rows):
        tokens[row, : len(values)] = values
    return torch.from_numpy(tokens)


SOURCE = ids([4, 5, 6, 3], [7, 3], [8, 9, 10, 4, 5, 3])
PREFIX = ids([2, 4, 5], [2, 6], [2, 7, 8])


@each_kind
@pytest.mark.parametrize("layers", [1, 2])
def test_padding_of_either_input_changes_nothing(kind: Any, layers: int) -> None:
    model = built(kind, layers=layers)
    with torch.no_grad():
        together = model(nn.functional.pad(SOURCE, (0, 5)), nn.functional.pad(PREFIX, (0, 4)))
        assert together.shape == (3, 7, OUTPUTS)
        for row in range(3):
            source, prefix = (value[row][value[row] != 0][None] for value in (SOURCE, PREFIX))
            alone = model(source, prefix)[0]
            torch.testing.assert_close(together[row, : len(alone)], alone, rtol=1e-5, atol=1e-6)


@each_kind
def test_later_tokens_of_the_prefix_are_not_seen(kind: Any) -> None:
    model = built(kind)
    other = PREFIX.clone()
    other[:, 2] = 3
    with torch.no_grad():
        first, second = model(SOURCE, PREFIX), model(SOURCE, other)
    assert torch.equal(first[:, :2], second[:, :2])
    assert not torch.allclose(first[:, 2], second[:, 2])


@each_kind
def test_every_source_token_and_its_place_matter(kind: Any) -> None:
    model = built(kind)
    with torch.no_grad():
        plain = model(ids([4, 5, 6, 7, 3]), ids([2]))
        for changed in ([8, 5, 6, 7, 3], [4, 5, 8, 7, 3], [4, 5, 6, 8, 3], [5, 4, 6, 7, 3]):
            assert (model(ids(changed), ids([2])) - plain).abs().max() > 1e-4


@each_kind
def test_texts_may_be_longer_than_those_of_training(kind: Any) -> None:
    with torch.no_grad():
        logits = built(kind)(torch.full((1, 40), 5), torch.full((1, 30), 4))
    assert logits.shape == (1, 30, OUTPUTS)
    assert torch.isfinite(logits).all()


def test_the_encoder_equals_torchs_own_on_packed_sequences() -> None:
    model: RnnSeq2Seq = built(rnn_seq2seq.Config, hidden=8, embedding=6)
    reference = nn.LSTM(6, 4, batch_first=True, bidirectional=True)
    for suffix, layer in (("", model.ahead[0]), ("_reverse", model.back[0])):
        for name, value in layer.named_parameters():
            getattr(reference, f"{name}{suffix}").data.copy_(value)
    lengths = (SOURCE != 0).sum(dim=1)
    packed = pack_padded_sequence(model.source(SOURCE), lengths, batch_first=True, enforce_sorted=False)
    states, (last, _) = reference(packed)
    expected = pad_packed_sequence(states, batch_first=True)[0]
    memory, ends = model.read(SOURCE, real_tokens(SOURCE))
    for row, length in enumerate(lengths):
        torch.testing.assert_close(memory[row, :length], expected[row, :length])
    torch.testing.assert_close(ends, torch.cat([last[0], last[1]], dim=1))


def test_attention_that_prefers_nothing_averages_the_source() -> None:
    model: RnnSeq2Seq = built(rnn_seq2seq.Config)
    nn.init.zeros_(model.attention.weight)
    seen: list[Tensor] = []
    model.combine.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        model(SOURCE, PREFIX)
        memory, _ = model.read(SOURCE, real_tokens(SOURCE))
    for row, length in enumerate((SOURCE != 0).sum(dim=1)):
        expected = memory[row, :length].mean(dim=0).expand(3, -1)
        torch.testing.assert_close(seen[0][row, :, : memory.shape[2]], expected)


def test_the_transformer_equals_torchs_layers_step_by_step() -> None:
    model: TransformerSeq2Seq = built(transformer_seq2seq.Config, width=8, heads=2, layers=2)
    source, prefix = SOURCE[:1, :4], PREFIX[:1]
    inner = model.transformer
    assert model.target is not None
    assert model.head is not None
    with torch.no_grad():
        memory = model._embedded(model.source, source)
        for layer in inner.encoder.layers:
            memory = layer(memory)
        memory = inner.encoder.norm(memory)
        states = model._embedded(model.target, prefix)
        for layer in inner.decoder.layers:
            states = layer(states, memory, tgt_mask=torch.ones(3, 3).triu(1).bool())
        expected = model.head(inner.decoder.norm(states))
        torch.testing.assert_close(model(source, prefix), expected, rtol=1e-5, atol=1e-6)


def test_tied_weights_embed_both_sides_and_score() -> None:
    size = 7
    inputs = tuple(InputSpec(name, (None,), "int64", size, 9) for name in ("source", "prefix"))
    one = DataSpec(inputs, TargetSpec("tokens", size=size), tokenizers={"source": "{}", "target": "{}"})
    torch.manual_seed(0)
    model = transformer_seq2seq.Config(tied=True).build(one, size).eval()
    tables = [value for value in model.parameters() if value.shape == (size, 128)]
    assert len(tables) == 1
    states: list[Tensor] = []
    model.transformer.register_forward_hook(lambda module, inputs, output: states.append(output))
    with torch.no_grad():
        logits = model(ids([4, 5, 3]), ids([2, 6]))
        torch.testing.assert_close(logits, states[0] @ tables[0].T)

    two = replace(one, tokenizers={"source": "{}", "target": "[]"})
    with pytest.raises(CapabilityError, match=r"data\.shared: true"):
        transformer_seq2seq.Config(tied=True).build(two, size)


@pytest.mark.parametrize(("width", "heads"), [(9, 3), (8, 3)])
def test_heads_must_divide_an_even_width(width: int, heads: int) -> None:
    with pytest.raises(ValueError, match=r"width|multiple of 2"):
        transformer_seq2seq.Config(width=width, heads=heads)


@each_kind
def test_other_data_is_refused(kind: Any) -> None:
    spec = DataSpec((InputSpec("image", (1, 8, 8)),), TargetSpec("class", ("a", "b")))
    with pytest.raises(CapabilityError, match="pairs of texts"):
        kind().build(spec, 2)
