"""Language models: causality, ties, and parity with step-by-step and library references."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fmdist.contracts import DataSpec, InputSpec, TargetSpec
from fmdist.models import gpt, lstm_lm
from fmdist.models.base import ModelConfig

SIZE, LONGEST = 11, 9
SPEC = DataSpec((InputSpec("tokens", (None,), "int64", SIZE, LONGEST),), TargetSpec("tokens", size=SIZE))
CACHE = lstm_lm.CacheConfig()
SMALL: list[ModelConfig] = [
    gpt.Config(layers=2, width=16, heads=2),
    gpt.Config(layers=1, width=16, heads=4, tied=False),
    lstm_lm.Config(embedding=6, hidden=8, layers=2),
    lstm_lm.Config(embedding=6, hidden=8, tied=True),
    lstm_lm.Config(embedding=6, hidden=8, cache=CACHE),
]

each_model = pytest.mark.parametrize(
    "config", SMALL, ids=["gpt-tied", "gpt", "lstm", "lstm-tied", "lstm-cache"]
)


def built(config: ModelConfig) -> nn.Module:
    torch.manual_seed(0)
    return config.build(SPEC, SIZE).train(False)


def tokens(*shape: int) -> Tensor:
    return torch.randint(1, SIZE, shape, generator=torch.Generator().manual_seed(1))


@each_model
def test_logits_depend_on_the_past_only(config: ModelConfig) -> None:
    model, tokens_BT = built(config), tokens(2, LONGEST)
    changed_BT = tokens_BT.clone()
    changed_BT[:, 5:] = 0  # padding, or any other later token
    with torch.no_grad():
        before, after = model(tokens_BT), model(changed_BT)
        shorter = model(tokens_BT[:, :5])
    assert before.shape == (2, LONGEST, SIZE)
    torch.testing.assert_close(before[:, :5], after[:, :5])
    torch.testing.assert_close(before[:, :5], shorter)
    assert not torch.allclose(before[:, 5:], after[:, 5:])


@each_model
def test_logits_depend_on_all_of_the_past(config: ModelConfig) -> None:
    model = built(config)
    embedded: list[Tensor] = []
    handle = model.get_submodule("embedding").register_forward_hook(
        lambda module, given, output: embedded.append(output)
    )
    logits = model(tokens(1, LONGEST))
    handle.remove()
    (gradient_BTE,) = torch.autograd.grad(logits[0, -1, 0], embedded)
    assert (gradient_BTE.abs().sum(dim=2) > 0).all()


@each_model
def test_tied_weights_are_one_tensor(config: Any) -> None:
    model = built(config)
    shapes = [tuple(parameter.shape) for parameter in model.parameters()]
    vocabulary_sized = [shape for shape in shapes if SIZE in shape and len(shape) == 2]
    assert len(vocabulary_sized) == (1 if config.tied else 2)
    pointers = [value.data_ptr() for value in model.state_dict().values()]
    assert len(pointers) == len(set(pointers))


def test_lstm_matches_cells_stepped_by_hand() -> None:
    model = built(lstm_lm.Config(embedding=6, hidden=8))
    assert isinstance(model, lstm_lm.LstmLanguageModel)
    cell = nn.LSTMCell(6, 8)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in model.lstm.state_dict().items()})
    tokens_BT = tokens(3, 7)
    hidden, memory = torch.zeros(3, 8), torch.zeros(3, 8)
    with torch.no_grad():
        found = model(tokens_BT)
        for step in range(7):
            hidden, memory = cell(model.embedding(tokens_BT[:, step]), (hidden, memory))
            torch.testing.assert_close(found[:, step], model.output(hidden))


@pytest.mark.parametrize("hidden", [8, 16])
def test_the_cache_is_the_sum_over_earlier_positions(hidden: int) -> None:
    cache = lstm_lm.CacheConfig(sharpness=3.0, weight=0.7)
    generator = torch.Generator().manual_seed(3)
    logits_BTK = torch.randn(2, LONGEST, SIZE, generator=generator)
    states_BTH = torch.randn(2, LONGEST, hidden, generator=generator)
    tokens_BT = tokens(2, LONGEST)
    found_BTK = lstm_lm.with_cache(logits_BTK, states_BTH, tokens_BT, cache).exp()
    for row in range(2):
        for now in range(LONGEST):
            counts_K = logits_BTK[row, now].softmax(dim=0)
            for past in range(now):
                cosine = torch.cosine_similarity(states_BTH[row, now], states_BTH[row, past], dim=0)
                counts_K[tokens_BT[row, past + 1]] += 0.7 * torch.exp(3.0 * (cosine - 1))
            torch.testing.assert_close(found_BTK[row, now], counts_K / counts_K.sum())


def test_the_cache_is_for_evaluation_only() -> None:
    plain, copying = (built(lstm_lm.Config(hidden=8, dropout=0, cache=cache)) for cache in (None, CACHE))
    repeated = tokens(1, 3).repeat(1, 3)
    assert not torch.allclose(plain(repeated).softmax(dim=2), copying(repeated).exp())
    copying.train()
    torch.testing.assert_close(plain(repeated), copying(repeated))


@pytest.mark.slow  # transformers takes seconds to import
def test_gpt_matches_transformers_gpt_neox() -> None:
    """GPT-NeoX (Black et al. 2022) without parallel residuals is the same function."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    width, heads, layers = 16, 2, 2
    model = built(gpt.Config(layers=layers, width=width, heads=heads, tied=False))
    reference = GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=SIZE,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * width,
            hidden_act="gelu",
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 1.0},
            max_position_embeddings=LONGEST,
            use_parallel_residual=False,
            attention_dropout=0.0,
            hidden_dropout=0.0,
        )
    ).train(False)
    ours = {name: value + 0.1 * torch.randn(value.shape) for name, value in model.state_dict().items()}
    model.load_state_dict(ours)
    names = {
        "attention_norm": "input_layernorm",
        "query_key_value": "attention.query_key_value",
        "merge": "attention.dense",
        "mlp_norm": "post_attention_layernorm",
        "widen": "mlp.dense_h_to_4h",
        "shrink": "mlp.dense_4h_to_h",
    }
    theirs = {
        "gpt_neox.embed_in.weight": ours["embedding.weight"],
        "gpt_neox.final_layer_norm.weight": ours["norm.weight"],
        "gpt_neox.final_layer_norm.bias": ours["norm.bias"],
        "lm_head.weight": ours["head.weight"],
    }
    for layer in range(layers):
        for our_name, their_name in names.items():
            for part in ("weight", "bias"):
                value = ours[f"blocks.{layer}.{our_name}.{part}"]
                if our_name == "query_key_value":
                    # They keep query, key and value of a head together; we keep the heads of each.
                    rest = value.shape[1:]
                    value = value.view(3, heads, width // heads, *rest).transpose(0, 1).reshape(-1, *rest)
                theirs[f"gpt_neox.layers.{layer}.{their_name}.{part}"] = value
    missing, unexpected = reference.load_state_dict(theirs, strict=False)
    assert not unexpected
    assert not missing
    tokens_BT = tokens(2, LONGEST)
    with torch.no_grad():
        torch.testing.assert_close(model(tokens_BT), reference(tokens_BT).logits, rtol=1e-4, atol=1e-5)


def test_rotated_products_tell_distances_only() -> None:
    generator = torch.Generator().manual_seed(2)
    query_D, key_D = torch.randn(8, generator=generator), torch.randn(8, generator=generator)
    cos_TD, sin_TD = gpt.rotary_tables(20, 8)

    def product(query_at: int, key_at: int) -> Tensor:
        query = gpt.rotate(query_D, cos_TD[query_at], sin_TD[query_at])
        key = gpt.rotate(key_D, cos_TD[key_at], sin_TD[key_at])
        return query @ key

    torch.testing.assert_close(product(3, 1), product(17, 15))
    assert not torch.allclose(product(3, 1), product(3, 2))
    torch.testing.assert_close(product(0, 0), query_D @ key_D)


def test_dropout_is_for_training_only() -> None:
    for config in (gpt.Config(layers=1, width=16, heads=2, dropout=0.5), lstm_lm.Config(dropout=0.5)):
        model, tokens_BT = built(config), tokens(2, 5)
        with torch.no_grad():
            torch.testing.assert_close(model(tokens_BT), model(tokens_BT))
            model.train()
            assert not torch.allclose(model(tokens_BT), model(tokens_BT))


@pytest.mark.parametrize("width", [18, 12])
def test_heads_that_dont_fit_the_width(width: int) -> None:
    with pytest.raises(ValidationError, match="multiple of twice the heads"):
        gpt.Config(width=width, heads=4)
