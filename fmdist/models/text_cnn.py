"""Convolutions over token embeddings, the strongest response of each kept."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fmdist.contracts import DataSpec
from fmdist.models.base import ModelConfig, token_input
from fmdist.models.sequence import real_tokens


class Config(ModelConfig):
    """Filters of several widths, maximum over time, dropout, a linear head (Kim 2014, arXiv:1408.5882)."""

    embedding: int = Field(default=128, ge=1)
    """Features of a token."""
    widths: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(3, 4, 5), min_length=1)
    """Width of the filters, in tokens."""
    filters: int = Field(default=100, ge=1)
    """Filters of each width."""
    dropout: float = Field(default=0.5, ge=0, lt=1)
    """Probability of zeroing a pooled feature in training."""

    def build(self, spec: DataSpec, outputs: int) -> TextCNN:
        """Return a module from token ids (B, T) to (B, outputs)."""
        return TextCNN(self, token_input(spec, self.kind()).size, outputs)


class TextCNN(nn.Module):
    """Shapes: B batch, T time, E embedding, C filters of one width, K outputs."""

    side_by_side = ("convolutions",)

    def __init__(self, config: Config, vocabulary: int, outputs: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, config.embedding, padding_idx=0)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(config.embedding, config.filters, width) for width in config.widths
        )
        self.widths = config.widths
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.filters * len(config.widths), outputs)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return (B, K)."""
        real_B1T = real_tokens(tokens_BT)[:, None, :].float()
        # To zero, so that a short text in a long batch meets what pads it on both sides when it is alone.
        embedded_BET = self.embedding(tokens_BT).transpose(1, 2) * real_B1T
        pooled = []
        for convolution, width in zip(self.convolutions, self.widths, strict=True):
            padded_BET = functional.pad(embedded_BET, ((width - 1) // 2, width // 2))
            # One response per token; those at padding are 0, which a maximum after the ReLU never prefers.
            response_BCT = torch.relu(convolution(padded_BET)) * real_B1T
            pooled.append(response_BCT.amax(dim=2))
        logits_BK: Tensor = self.head(self.dropout(torch.cat(pooled, dim=1)))
        return logits_BK
