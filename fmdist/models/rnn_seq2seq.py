"""Recurrent encoder and decoder with attention.

Shapes: B batch, S and T time of source and target, E embedding, H hidden units,
V tokens of the target's vocabulary.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fmdist.contracts import DataSpec
from fmdist.models.base import ModelConfig
from fmdist.models.pairs import pair_inputs
from fmdist.models.sequence import last_state, real_tokens, reversed_in_time


class Config(ModelConfig):
    """LSTM layers that read the source from both ends and write the target, looking back by attention.

    Sources: Bahdanau et al. 2015 (arXiv:1409.0473) for the encoder and how the decoder starts; Luong et al.
    2015 (arXiv:1508.04025) for "general" attention after the decoder. Without their input feeding, so that
    all target tokens are trained on at once.
    """

    form: ClassVar[str] = "pair"
    onnx_route: ClassVar[Literal["dynamo", "torchscript"] | None] = "torchscript"

    embedding: int = Field(default=64, ge=1)
    """Features of a token."""
    hidden: int = Field(default=128, ge=2, multiple_of=2)
    """Units per layer of the decoder; half as many per direction of the encoder."""
    layers: int = Field(default=1, ge=1)
    """Layers of the encoder, and as many of the decoder."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability of zeroing a feature before each layer and before the head in training."""

    def build(self, spec: DataSpec, outputs: int) -> RnnSeq2Seq:
        """Return a module from source ids (B, S) and prefix ids (B, T) to logits (B, T, outputs)."""
        source, prefix = pair_inputs(spec, self.kind())
        return RnnSeq2Seq(self, source.size, prefix.size, outputs)


class RnnSeq2Seq(nn.Module):
    """Padding of the source is never read; that of the prefix is at the end, after all that counts."""

    in_step = (("ahead", "back"),)

    def __init__(self, config: Config, source_size: int, target_size: int, outputs: int) -> None:
        super().__init__()
        hidden, layers = config.hidden, config.layers
        self.source = nn.Embedding(source_size, config.embedding, padding_idx=0)
        self.target = nn.Embedding(target_size, config.embedding, padding_idx=0)
        self.dropout = nn.Dropout(config.dropout)
        sizes = [config.embedding] + [hidden] * (layers - 1)
        self.ahead = nn.ModuleList(nn.LSTM(size, hidden // 2, batch_first=True) for size in sizes)
        self.back = nn.ModuleList(nn.LSTM(size, hidden // 2, batch_first=True) for size in sizes)
        self.start = nn.Linear(hidden, 2 * layers * hidden)
        self.decoder = nn.ModuleList(nn.LSTM(size, hidden, batch_first=True) for size in sizes)
        self.attention = nn.Linear(hidden, hidden, bias=False)
        self.combine = nn.Linear(2 * hidden, hidden)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, source_BS: Tensor, prefix_BT: Tensor) -> Tensor:
        """Return logits (B, T, V) of the token after each position of the prefix."""
        real_BS = real_tokens(source_BS)
        memory_BSH, ends_BH = self.read(source_BS, real_BS)
        states_BTH = self.write(prefix_BT, ends_BH)
        scores_BTS = self.attention(states_BTH) @ memory_BSH.transpose(1, 2)
        weights_BTS = scores_BTS.masked_fill(~real_BS[:, None, :], -1e4).softmax(dim=2)
        seen_BTH = torch.cat([weights_BTS @ memory_BSH, states_BTH], dim=2)
        logits_BTV: Tensor = self.head(self.dropout(torch.tanh(self.combine(seen_BTH))))
        return logits_BTV

    def read(self, source_BS: Tensor, real_BS: Tensor) -> tuple[Tensor, Tensor]:
        """Return the states (B, S, H) at each source token, and those (B, H) at which both directions end."""
        states_BSH = self.source(source_BS)
        ends_BH = states_BSH[:, 0]
        for ahead, back in zip(self.ahead, self.back, strict=True):
            input_BSH = self.dropout(states_BSH)
            forward_BSH = ahead(input_BSH)[0]
            # Not nn.LSTM's own second direction: it would read the padding first.
            turned_BSH = back(reversed_in_time(input_BSH, real_BS))[0]
            states_BSH = torch.cat([forward_BSH, reversed_in_time(turned_BSH, real_BS)], dim=2)
            ends_BH = torch.cat([last_state(forward_BSH, real_BS), last_state(turned_BSH, real_BS)], dim=1)
        return states_BSH, ends_BH

    def write(self, prefix_BT: Tensor, ends_BH: Tensor) -> Tensor:
        """Return the decoder's states (B, T, H), each layer started from where the encoder ended."""
        states_BTH: Tensor = self.target(prefix_BT)
        starts_BH = torch.tanh(self.start(ends_BH)).chunk(2 * len(self.decoder), dim=1)
        for layer, decoder in enumerate(self.decoder):
            first = (starts_BH[2 * layer][None], starts_BH[2 * layer + 1][None])
            states_BTH = decoder(self.dropout(states_BTH), first)[0]
        return states_BTH
