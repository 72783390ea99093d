"""LSTM language model: predicts the next token from a recurrent state.

Shapes: B batch, T time, H hidden units, K tokens of the vocabulary, C width of the cache's keys.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fmdist.contracts import DataSpec
from fmdist.models.base import ModelConfig, token_input
from fmdist.recipe.schema import Section


class CacheConfig(Section):
    """Copying what followed similar states earlier in the window, in evaluation only.

    The continuous cache of Grave et al. 2017 (arXiv:1612.04426), with states compared by their cosine. It
    needs no training, and pays where a text repeats itself and windows are long enough to see it.
    """

    sharpness: float = Field(default=16.0, gt=0)
    """How much more a similar state counts than others: a cosine c counts exp(sharpness (c - 1))."""
    weight: float = Field(default=0.4, gt=0)
    """What a past state equal to the present one counts, where the model's own prediction counts 1."""


class Config(ModelConfig):
    """Embedding, LSTM layers, and a linear layer over the vocabulary, with dropout between them.

    Sources: Hochreiter & Schmidhuber 1997 (doi:10.1162/neco.1997.9.8.1735); Zaremba et al. 2014
    (arXiv:1409.2329) for where the dropout goes. Exported with the state at zero before the first token.
    """

    form: ClassVar[str] = "language"
    onnx_route: ClassVar[Literal["dynamo", "torchscript"] | None] = "torchscript"

    embedding: int = Field(default=64, ge=1)
    """Numbers per token before the first layer."""
    hidden: int = Field(default=256, ge=1)
    """Units of each layer."""
    layers: int = Field(default=1, ge=1)
    """LSTM layers."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Probability of zeroing a number that enters a layer, or the output layer, in training."""
    tied: bool = False
    """Score tokens with the embedding's weights (Press & Wolf 2017, arXiv:1608.05859), after a projection to
    the embedding's width, or with a layer of their own."""
    cache: CacheConfig | None = None
    """Copy from earlier in the window; null for not."""

    def build(self, spec: DataSpec, outputs: int) -> LstmLanguageModel:
        """Return a module from tokens (B, T) to logits (B, T, outputs)."""
        return LstmLanguageModel(self, token_input(spec, self.kind()).size, outputs)


class LstmLanguageModel(nn.Module):
    """Logits at each position depend on the tokens up to it, so padding at the end changes nothing before."""

    def __init__(self, config: Config, vocabulary: int, outputs: int) -> None:
        super().__init__()
        self.tied = config.tied
        self.read_elsewhere = ("embedding",) if config.tied else ()
        self.cache = config.cache
        self.embedding = nn.Embedding(vocabulary, config.embedding)
        self.dropout = nn.Dropout(config.dropout)
        between = config.dropout if config.layers > 1 else 0.0
        self.lstm = nn.LSTM(config.embedding, config.hidden, config.layers, batch_first=True, dropout=between)
        self.output = nn.Linear(config.hidden, config.embedding if config.tied else outputs)
        # torch's default deviation of 1 would make tied logits far too large.
        nn.init.normal_(self.embedding.weight, std=config.embedding**-0.5 if config.tied else 1.0)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return logits (B, T, K) of the token after each position."""
        states_BTH, _ = self.lstm(self.dropout(self.embedding(tokens_BT)))
        logits_BTK: Tensor = self.output(self.dropout(states_BTH))
        if self.tied:
            logits_BTK = functional.linear(logits_BTK, self.embedding.weight)
        if self.cache is None or self.training:
            return logits_BTK
        return with_cache(logits_BTK, states_BTH, tokens_BT, self.cache)


def with_cache(logits_BTK: Tensor, states_BTH: Tensor, tokens_BT: Tensor, cache: CacheConfig) -> Tensor:
    """Return log-probabilities (B, T, K) of the next token, mixed with the tokens that followed before.

    At each position the model's own softmax counts 1, and the token after each earlier position as much as
    `CacheConfig` says of its state. One causal attention does it, so that memory grows with T and not with
    its square: the first key stands for the model itself, and each later one for the state before it.
    """
    vocabulary = logits_BTK.shape[2]
    unit_BTH = functional.normalize(states_BTH, dim=2)
    query_BTC = torch.cat((cache.sharpness * unit_BTH, torch.ones_like(unit_BTH[:, :, :1])), dim=2)
    itself_B11 = torch.full_like(unit_BTH[:, :1, :1], cache.sharpness - math.log(cache.weight))
    itself_B1C = torch.cat((torch.zeros_like(unit_BTH[:, :1]), itself_B11), dim=2)
    key_BTC = torch.cat((itself_B1C, functional.pad(unit_BTH[:, :-1], (0, 1))), dim=1)
    # The model's own value is token 0, padding, which nothing is followed by.
    followed_BT = functional.pad(tokens_BT[:, 1:], (1, 0))
    value_BTK = functional.one_hot(followed_BT, vocabulary).to(unit_BTH.dtype)
    # Attention is quick where queries and values are of one width.
    width = max(query_BTC.shape[2], vocabulary)
    share_BTK = functional.scaled_dot_product_attention(
        _widened(query_BTC, width),
        _widened(key_BTC, width),
        _widened(value_BTK, width),
        is_causal=True,
        scale=1.0,
    )[:, 0, :, :vocabulary]
    copied_BTK = functional.pad(share_BTK[:, :, 1:], (1, 0))
    mixed_BTK = share_BTK[:, :, :1] * logits_BTK.softmax(dim=2) + copied_BTK
    return mixed_BTK.clamp(min=1e-30).log()


def _widened(values_BTC: Tensor, width: int) -> Tensor:
    """Return values with zeros up to ``width``, and an axis for the only head."""
    return functional.pad(values_BTC, (0, width - values_BTC.shape[2]))[:, None]
