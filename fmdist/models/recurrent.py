"""What the recurrent kinds share: embedding, layers in one or both directions, pooling, a linear head.

Shapes: B batch, T time, E embedding, H units of all directions, K outputs.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fmdist.contracts import DataSpec
from fmdist.models.base import ModelConfig, token_input
from fmdist.models.sequence import Pooling, last_state, max_state, mean_state, real_tokens, reversed_in_time

Cell = type[nn.RNN] | type[nn.LSTM] | type[nn.GRU]


class RecurrentConfig(ModelConfig):
    """The settings of `rnn`, `lstm` and `gru`."""

    onnx_route: ClassVar[Literal["dynamo", "torchscript"] | None] = "torchscript"
    cell: ClassVar[Cell]
    """The layer that the kind is named after."""

    embedding: int = Field(default=64, ge=1)
    """Features of a token."""
    hidden: int = Field(default=128, ge=1)
    """Units per layer and direction."""
    layers: int = Field(default=1, ge=1)
    """Recurrent layers, one on top of the other."""
    bidirectional: bool = False
    """Read the text from both ends (Schuster & Paliwal 1997, doi:10.1109/78.650093)."""
    pooling: Pooling = "last"
    """What of the last layer the head reads: the final states, or the mean or maximum over the tokens."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of zeroing a feature of the embedding, between layers and before the head in training."""

    def build(self, spec: DataSpec, outputs: int) -> RecurrentNet:
        """Return a module from token ids (B, T) to (B, outputs)."""
        return RecurrentNet(self, token_input(spec, self.kind()).size, outputs)


class RecurrentNet(nn.Module):
    """Equal to torch's own bidirectional layers on packed sequences, and exportable with B and T free."""

    in_step = (("forwards", "backwards"),)

    def __init__(self, config: RecurrentConfig, vocabulary: int, outputs: int) -> None:
        super().__init__()
        self.pooling = config.pooling
        self.embedding = nn.Embedding(vocabulary, config.embedding, padding_idx=0)
        directions = 2 if config.bidirectional else 1
        width = config.hidden * directions
        sizes = [config.embedding] + [width] * (config.layers - 1)
        self.forwards = nn.ModuleList(config.cell(size, config.hidden, batch_first=True) for size in sizes)
        self.backwards = nn.ModuleList(
            config.cell(size, config.hidden, batch_first=True) for size in sizes if config.bidirectional
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(width, outputs)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return (B, K)."""
        real_BT = real_tokens(tokens_BT)
        states_BTH = self.embedding(tokens_BT)
        ahead_BTH = back_BTH = states_BTH
        for position, layer in enumerate(self.forwards):
            input_BTH = self.dropout(states_BTH)
            states_BTH = ahead_BTH = layer(input_BTH)[0]
            if self.backwards:
                # Not nn.LSTM's own second direction: it would read the padding first.
                turned_BTH = self.backwards[position](reversed_in_time(input_BTH, real_BT))[0]
                back_BTH = reversed_in_time(turned_BTH, real_BT)
                states_BTH = torch.cat([ahead_BTH, back_BTH], dim=2)
        if self.pooling == "mean":
            pooled_BH = mean_state(states_BTH, real_BT)
        elif self.pooling == "max":
            pooled_BH = max_state(states_BTH, real_BT)
        else:
            pooled_BH = last_state(ahead_BTH, real_BT)
            if self.backwards:
                pooled_BH = torch.cat([pooled_BH, back_BTH[:, 0]], dim=1)
        logits_BK: Tensor = self.head(self.dropout(pooled_BH))
        return logits_BK
