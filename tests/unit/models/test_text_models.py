"""Sequence classifiers: parity with torch's and transformers' layers, and padding that changes nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence

from fmdist import component
from fmdist.contracts import DataSpec, InputSpec, TargetSpec
from fmdist.data.tokenizer import BEGIN
from fmdist.errors import CapabilityError
from fmdist.models import sequence
from fmdist.models.attention import EncoderLayer, sinusoids

CLASSES = 3
SPEC = DataSpec(
    (InputSpec("tokens", (None,), "int64", size=40, longest=24),), TargetSpec("class", ("a", "b", "c"))
)

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("rnn", {"hidden": 8}),
    ("lstm", {"hidden": 8, "pooling": "mean"}),
    ("gru", {"hidden": 8, "pooling": "max"}),
    *(
        ("lstm", {"hidden": 8, "layers": 2, "bidirectional": True, "pooling": p})
        for p in ("last", "mean", "max")
    ),
    ("text_cnn", {"widths": [1, 2, 5], "filters": 6}),
    ("transformer_encoder", {"width": 16, "heads": 2, "feedforward": 24}),
    ("bert", {"hidden": 16, "heads": 2, "feedforward": 24}),
]


def built(kind: str, options: dict[str, Any], spec: DataSpec = SPEC) -> Any:
    """Return a module in evaluation mode, the same one at every call."""
    config = component.load(component.find("models", kind))
    torch.manual_seed(3)
    return config.model_validate_json(json.dumps(options)).build(spec, CLASSES).eval()


def padded(lengths: list[int], width: int) -> Tensor:
    tokens_BT = torch.zeros(len(lengths), width, dtype=torch.int64)
    generator = torch.Generator().manual_seed(1)
    for row, length in enumerate(lengths):
        tokens_BT[row, :length] = torch.randint(1, 40, (length,), generator=generator)
    return tokens_BT


each_variant = pytest.mark.parametrize(("kind", "options"), VARIANTS, ids=str)


@each_variant
@torch.no_grad()
def test_padding_and_neighbours_change_nothing(kind: str, options: dict[str, Any]) -> None:
    module = built(kind, options)
    lengths = [1, 2, 7, 20]
    together_BK = module(padded(lengths, 24))
    for row, length in enumerate(lengths):
        alone_1K = module(padded(lengths, 24)[row : row + 1, :length])
        torch.testing.assert_close(together_BK[row : row + 1], alone_1K, rtol=1e-5, atol=1e-6)
    assert (together_BK[2] - together_BK[3]).abs().max() > 1e-5


@each_variant
@torch.no_grad()
def test_a_row_of_padding_alone_is_finite(kind: str, options: dict[str, Any]) -> None:
    assert torch.isfinite(built(kind, options)(padded([0, 3], 5))).all()


@each_variant
@torch.no_grad()
def test_every_token_counts(kind: str, options: dict[str, Any]) -> None:
    module = built(kind, options)
    tokens_BT = padded([6], 6).expand(7, 6).clone()
    for position in range(6):
        tokens_BT[position + 1, position] = tokens_BT[position + 1, position] % 39 + 1
    logits_BK = module(tokens_BT)
    changed_B = (logits_BK[1:] - logits_BK[0]).abs().amax(dim=1)
    if options.get("pooling") == "max" or kind == "text_cnn":
        assert (changed_B > 1e-6).sum() >= 3  # a maximum may pass a token over
    else:
        assert (changed_B > 1e-6).all()


@pytest.mark.parametrize(("kind", "cell"), [("rnn", nn.RNN), ("lstm", nn.LSTM), ("gru", nn.GRU)])
@pytest.mark.parametrize("bidirectional", [False, True])
@torch.no_grad()
def test_recurrent_layers_equal_torchs_on_packed_sequences(
    kind: str, cell: type[nn.LSTM], bidirectional: bool
) -> None:
    module = built(kind, {"embedding": 5, "hidden": 7, "layers": 2, "bidirectional": bidirectional})
    reference = cell(5, 7, num_layers=2, bidirectional=bidirectional, batch_first=True)
    for layer in range(2):
        for suffix, ours in [("", module.forwards), ("_reverse", module.backwards)][: 1 + bidirectional]:
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                value = getattr(ours[layer], f"{name}_l0")
                getattr(reference, f"{name}_l{layer}{suffix}").copy_(value)
    lengths = [9, 4, 1]
    tokens_BT = padded(lengths, 12)
    packed = pack_padded_sequence(module.embedding(tokens_BT), torch.tensor(lengths), batch_first=True)
    final: Any = reference(packed)[1]
    hidden_DBH = final[0] if isinstance(final, tuple) else final
    pooled_BH = torch.cat([hidden_DBH[-2], hidden_DBH[-1]], dim=1) if bidirectional else hidden_DBH[-1]
    torch.testing.assert_close(module(tokens_BT), module.head(pooled_BH))


def test_pooling_reads_real_tokens_only() -> None:
    states_BTH = torch.tensor([[[1.0], [4.0], [9.0]], [[-2.0], [8.0], [8.0]], [[5.0], [5.0], [5.0]]])
    real_BT = sequence.real_tokens(torch.tensor([[7, 7, 7], [7, 0, 0], [0, 0, 0]]))
    assert sequence.last_state(states_BTH, real_BT).flatten().tolist() == [9, -2, 5]
    assert sequence.max_state(states_BTH, real_BT).flatten().tolist() == [9, -2, 5]
    means = sequence.mean_state(states_BTH, real_BT).flatten().tolist()
    assert means == pytest.approx([14 / 3, -2, 0])
    turned = sequence.reversed_in_time(states_BTH, sequence.real_tokens(torch.tensor([[7, 7, 0]] * 3)))
    assert turned[0].flatten().tolist() == [4, 1, 9]


@torch.no_grad()
def test_text_cnn_is_the_published_one() -> None:
    module = built("text_cnn", {"embedding": 4, "widths": [3], "filters": 5})
    tokens_BT = padded([6], 6)
    embedded_ET = module.embedding(tokens_BT)[0].T
    convolution = module.convolutions[0]
    wide_ET = functional.pad(embedded_ET, (1, 1))
    responses = [
        functional.relu((convolution.weight * wide_ET[:, at : at + 3]).sum(dim=(1, 2)) + convolution.bias)
        for at in range(6)
    ]
    expected_K = module.head(torch.stack(responses).amax(dim=0))
    torch.testing.assert_close(module(tokens_BT)[0], expected_K)


@torch.no_grad()
def test_encoder_layer_equals_torchs() -> None:
    torch.manual_seed(0)
    ours = EncoderLayer(width=12, heads=3, feedforward=20, dropout=0.1).eval()
    reference = nn.TransformerEncoderLayer(12, 3, 20, 0.1, "gelu", batch_first=True, norm_first=True).eval()
    attention = ours.attention
    parts = (attention.query, attention.key, attention.value)
    reference.self_attn.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
    reference.self_attn.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
    reference.self_attn.out_proj.load_state_dict(attention.output.state_dict())
    reference.norm1.load_state_dict(ours.norm_attention.state_dict())
    reference.norm2.load_state_dict(ours.norm_feedforward.state_dict())
    reference.linear1.load_state_dict(ours.feedforward[0].state_dict())
    reference.linear2.load_state_dict(ours.feedforward[3].state_dict())
    states_BTD = torch.randn(2, 5, 12)
    real_BT = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    expected_BTD = reference(states_BTD, src_key_padding_mask=~real_BT)
    got_BTD = ours(states_BTD, real_BT[:, None, None, :])
    torch.testing.assert_close(got_BTD[real_BT], expected_BTD[real_BT], rtol=1e-5, atol=1e-6)


def test_sinusoids_are_the_published_ones() -> None:
    table_TD = sinusoids(30, 8)
    for time, pair in [(0, 0), (3, 0), (29, 2), (7, 3)]:
        angle = torch.tensor(time / 10000 ** (2 * pair / 8))
        assert table_TD[time, 2 * pair].item() == pytest.approx(torch.sin(angle).item(), abs=1e-5)
        assert table_TD[time, 2 * pair + 1].item() == pytest.approx(torch.cos(angle).item(), abs=1e-5)


@torch.no_grad()
def test_bert_is_transformers_own_with_a_begin_token() -> None:
    from transformers import BertForSequenceClassification

    module = built("bert", {"hidden": 16, "heads": 2, "feedforward": 24})
    config = module.bert.config
    config.num_labels = CLASSES
    reference: nn.Module = BertForSequenceClassification(config)
    reference.load_state_dict(module.state_dict())
    reference.eval()
    tokens_BT = padded([3, 6], 6)
    ids_BT = functional.pad(tokens_BT, (1, 0), value=BEGIN)
    expected_BK = reference(input_ids=ids_BT, attention_mask=(ids_BT != 0).long()).logits
    torch.testing.assert_close(module(tokens_BT), expected_BK)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("transformer_encoder", {"width": 10, "heads": 4}), ("bert", {"hidden": 10, "heads": 4})],
)
def test_heads_that_do_not_divide_are_refused(kind: str, options: dict[str, int]) -> None:
    with pytest.raises(ValidationError, match=r"heads \(4\) must divide"):
        built(kind, options)


@pytest.mark.parametrize("kind", ["rnn", "lstm", "gru", "text_cnn", "transformer_encoder", "bert"])
def test_images_are_refused(kind: str) -> None:
    images = DataSpec((InputSpec("image", (1, 8, 8)),), TargetSpec("class", ("a", "b", "c")))
    with pytest.raises(CapabilityError, match="reads token sequences"):
        built(kind, {}, images)
