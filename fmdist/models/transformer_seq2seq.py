"""The transformer, encoder and decoder.

Shapes: B batch, S and T time of source and target, D width, V tokens of the target's vocabulary.
"""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from fmdist.contracts import DataSpec
from fmdist.errors import CapabilityError
from fmdist.models.attention import sinusoids
from fmdist.models.base import ModelConfig
from fmdist.models.pairs import pair_inputs
from fmdist.models.sequence import real_tokens


class Config(ModelConfig):
    """The model of Vaswani et al. 2017 (arXiv:1706.03762), normalized first.

    So it trains without a long warm-up (Xiong et al. 2020, arXiv:2002.04745).
    """

    form: ClassVar[str] = "pair"

    width: int = Field(default=128, ge=2, multiple_of=2)
    """Features of a token."""
    heads: int = Field(default=4, ge=1)
    """Attention heads; they divide the width."""
    layers: int = Field(default=2, ge=1)
    """Layers of the encoder, and as many of the decoder."""
    feedforward: int = Field(default=256, ge=1)
    """Hidden units of each layer's feed-forward part."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability of zeroing an attention weight or feature in training."""
    tied: bool = False
    """One table of weights embeds source and target and scores the tokens (Press & Wolf 2017,
    arXiv:1608.05859); for data with one vocabulary, data.shared."""

    @model_validator(mode="after")
    def _divided(self) -> Self:
        if self.width % self.heads:
            message = f"heads ({self.heads}) must divide width ({self.width})"
            raise ValueError(message)
        return self

    def build(self, spec: DataSpec, outputs: int) -> TransformerSeq2Seq:
        """Return a module from source ids (B, S) and prefix ids (B, T) to logits (B, T, outputs)."""
        source, prefix = pair_inputs(spec, self.kind())
        if self.tied and spec.tokenizers["source"] != spec.tokenizers["target"]:
            raise CapabilityError(
                field="model.tied",
                problem="the weights can't be tied, since source and target have vocabularies of their own",
                fix="set data.shared: true, or model.tied: false",
            )
        return TransformerSeq2Seq(self, source.size, prefix.size, outputs)


class TransformerSeq2Seq(nn.Module):
    """Texts may be of any length, since positions are sines and not learned."""

    def __init__(self, config: Config, source_size: int, target_size: int, outputs: int) -> None:
        super().__init__()
        self.source = _embedding(source_size, config.width)
        self.target = None if config.tied else _embedding(target_size, config.width)
        self.dropout = nn.Dropout(config.dropout)
        layer = nn.TransformerEncoderLayer(
            config.width, config.heads, config.feedforward, config.dropout, batch_first=True, norm_first=True
        )
        self.transformer = nn.Transformer(
            config.width,
            config.heads,
            num_decoder_layers=config.layers,
            dim_feedforward=config.feedforward,
            dropout=config.dropout,
            # Nested tensors can't be used with normalization first, and torch would warn of that.
            custom_encoder=nn.TransformerEncoder(
                layer, config.layers, nn.LayerNorm(config.width), enable_nested_tensor=False
            ),
            batch_first=True,
            norm_first=True,
        )
        self.head = None if config.tied else nn.Linear(config.width, outputs)
        self.read_elsewhere = ("source",) if config.tied else ()

    def forward(self, source_BS: Tensor, prefix_BT: Tensor) -> Tensor:
        """Return logits (B, T, V) of the token after each position of the prefix."""
        padding_BS = ~real_tokens(source_BS)
        time_T = torch.arange(prefix_BT.shape[1], device=prefix_BT.device)
        # Padding of the prefix needs no mask: it is at the end, where no token looks.
        states_BTD = self.transformer(
            self._embedded(self.source, source_BS),
            self._embedded(self.target or self.source, prefix_BT),
            tgt_mask=time_T > time_T[:, None],
            tgt_is_causal=True,
            src_key_padding_mask=padding_BS,
            memory_key_padding_mask=padding_BS,
        )
        if self.head is None:
            return functional.linear(states_BTD, self.source.weight)
        logits_BTV: Tensor = self.head(states_BTD)
        return logits_BTV

    def _embedded(self, table: nn.Embedding, ids_BT: Tensor) -> Tensor:
        """Return the embeddings (B, T, D) with the positions added."""
        width = self.transformer.d_model
        positions_TD = sinusoids(ids_BT.shape[1], width).to(table.weight)
        embedded_BTD: Tensor = self.dropout(table(ids_BT) * math.sqrt(width) + positions_TD)
        return embedded_BTD


def _embedding(size: int, width: int) -> nn.Embedding:
    """Return an embedding that, times sqrt(width), is of the same scale as the positions."""
    table = nn.Embedding(size, width)
    nn.init.normal_(table.weight, std=width**-0.5)
    return table
