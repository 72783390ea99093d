"""Transformer encoder on token sequences, averaged over the tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar, Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from fmdist.contracts import DataSpec, InputSpec
from fmdist.models.attention import EncoderLayer, sinusoids
from fmdist.models.base import ModelConfig, token_input
from fmdist.models.sequence import mean_state, real_tokens


class Config(ModelConfig):
    """The encoder of Vaswani et al. 2017 (arXiv:1706.03762), normalized first, with a linear head."""

    fixed: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"embedding": "the table of positions that is added to it has its width"}
    )

    width: int = Field(default=128, ge=2, multiple_of=2)
    """Features of a token."""
    heads: int = Field(default=4, ge=1)
    """Attention heads; they divide the width."""
    layers: int = Field(default=2, ge=1)
    """Encoder layers."""
    feedforward: int = Field(default=256, ge=1)
    """Hidden units of each layer's feed-forward part."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability of zeroing an attention weight or feature in training."""

    @model_validator(mode="after")
    def _divided(self) -> Self:
        if self.width % self.heads:
            message = f"heads ({self.heads}) must divide width ({self.width})"
            raise ValueError(message)
        return self

    def build(self, spec: DataSpec, outputs: int) -> TransformerEncoder:
        """Return a module from token ids (B, T) to (B, outputs), for at most the data's longest text."""
        return TransformerEncoder(self, token_input(spec, self.kind()), outputs)


class TransformerEncoder(nn.Module):
    """Shapes: B batch, T time, D width, K outputs."""

    positions: Tensor

    def __init__(self, config: Config, tokens: InputSpec, outputs: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens.size, config.width, padding_idx=0)
        # So that embeddings times sqrt(D) are as large as the positions added to them.
        nn.init.normal_(self.embedding.weight, std=1 / math.sqrt(config.width))
        self.scale = math.sqrt(config.width)
        self.register_buffer("positions", sinusoids(tokens.longest, config.width), persistent=False)
        self.dropout = nn.Dropout(config.dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(config.width, config.heads, config.feedforward, config.dropout)
            for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, outputs)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return (B, K)."""
        real_BT = real_tokens(tokens_BT)
        positions_TD = self.positions[: tokens_BT.shape[1]]
        states_BTD = self.dropout(self.embedding(tokens_BT) * self.scale + positions_TD)
        for layer in self.layers:
            states_BTD = layer(states_BTD, real_BT[:, None, None, :])
        logits_BK: Tensor = self.head(mean_state(self.norm(states_BTD), real_BT))
        return logits_BK
