"""GPT: a transformer decoder that predicts the next token.

Shapes: B batch, T time, W width, H heads, D width of a head, K tokens of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from fmdist.contracts import DataSpec
from fmdist.models.base import ModelConfig, token_input


class Config(ModelConfig):
    """Pre-norm blocks of causal self-attention and a GELU layer four times as wide, with rotary positions.

    Sources: Radford et al. 2019 (GPT-2); Vaswani et al. 2017 (arXiv:1706.03762); Su et al. 2021
    (arXiv:2104.09864) for the positions, which leave no learned table to be outgrown.
    """

    form: ClassVar[str] = "language"
    fixed: ClassVar[Mapping[str, str]] = MappingProxyType(
        dict.fromkeys(
            ("embedding", "blocks.*.query_key_value", "blocks.*.merge", "blocks.*.shrink"),
            "rotary positions turn its channels in pairs, of the width between the blocks",
        )
    )

    layers: int = Field(default=4, ge=1)
    """Blocks."""
    width: int = Field(default=128, ge=2)
    """Numbers per token between the blocks."""
    heads: int = Field(default=4, ge=1)
    """Attention heads; each takes an even share of the width."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability of zeroing a number of the embedding, or of what a block adds, in training."""
    tied: bool = True
    """Score tokens with the embedding's weights (Press & Wolf 2017, arXiv:1608.05859) or with their own."""

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.width % (2 * self.heads):
            message = f"width ({self.width}) must be a multiple of twice the heads ({self.heads})"
            raise ValueError(message)
        return self

    def build(self, spec: DataSpec, outputs: int) -> Gpt:
        """Return a module from tokens (B, T), T up to the data's longest, to logits (B, T, outputs)."""
        tokens = token_input(spec, self.kind())
        return Gpt(self, tokens.size, tokens.longest, outputs)


class Gpt(nn.Module):
    """Logits at each position depend on the tokens up to it, so padding at the end changes nothing before.

    Weights start as in GPT-2: normal with deviation 0.02, divided by sqrt(2 layers) where a block's branch
    joins the residual stream.
    """

    cosines: Tensor
    sines: Tensor

    def __init__(self, config: Config, vocabulary: int, context: int, outputs: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, config.width)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = None if config.tied else nn.Linear(config.width, outputs, bias=False)
        self.read_elsewhere = ("embedding",) if config.tied else ()
        cos_TD, sin_TD = rotary_tables(context, config.width // config.heads)
        self.register_buffer("cosines", cos_TD, persistent=False)
        self.register_buffer("sines", sin_TD, persistent=False)
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                joins = name.endswith(("merge.weight", "shrink.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * config.layers) if joins else 0.02)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return logits (B, T, K) of the token after each position."""
        length = tokens_BT.shape[1]
        cos_TD, sin_TD = self.cosines[:length], self.sines[:length]
        hidden_BTW = self.dropout(self.embedding(tokens_BT))
        for block in self.blocks:
            hidden_BTW = block(hidden_BTW, cos_TD, sin_TD)
        if self.head is None:
            return functional.linear(self.norm(hidden_BTW), self.embedding.weight)
        logits_BTK: Tensor = self.head(self.norm(hidden_BTW))
        return logits_BTK


class Block(nn.Module):
    """``x + attention(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.merge = nn.Linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.widen = nn.Linear(width, 4 * width)
        self.shrink = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_BTW: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        """Return hidden states of the same shape."""
        batch, length, width = hidden_BTW.shape
        packed = self.query_key_value(self.attention_norm(hidden_BTW))
        packed = packed.view(batch, length, 3, self.heads, width // self.heads)
        query_BHTD, key_BHTD, value_BHTD = packed.permute(2, 0, 3, 1, 4).unbind(0)
        mixed_BHTD = functional.scaled_dot_product_attention(
            rotate(query_BHTD, cos_TD, sin_TD), rotate(key_BHTD, cos_TD, sin_TD), value_BHTD, is_causal=True
        )
        mixed_BTW = mixed_BHTD.transpose(1, 2).reshape(batch, length, width)
        hidden_BTW = hidden_BTW + self.dropout(self.merge(mixed_BTW))
        added_BTW = self.shrink(functional.gelu(self.widen(self.mlp_norm(hidden_BTW))))
        result_BTW: Tensor = hidden_BTW + self.dropout(added_BTW)
        return result_BTW


def rotary_tables(length: int, width: int) -> tuple[Tensor, Tensor]:
    """Return cosines and sines (T, D) of position times frequency 10000^(-2i / D), both halves of D alike."""
    frequencies = 10000.0 ** (-torch.arange(0, width, 2) / width)
    angles_TD = torch.outer(torch.arange(length), frequencies).repeat(1, 2)
    return angles_TD.cos(), angles_TD.sin()


def rotate(values_BHTD: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
    """Return queries or keys, each turned by its position's angles, so that products tell distances."""
    first, second = values_BHTD.chunk(2, dim=-1)
    return values_BHTD * cos_TD + torch.cat((-second, first), dim=-1) * sin_TD
