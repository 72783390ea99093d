"""BERT from a transformers configuration, without pretrained weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from fmdist.contracts import DataSpec, InputSpec
from fmdist.models.base import ModelConfig, token_input
from fmdist.models.sequence import real_tokens

if TYPE_CHECKING:
    from transformers import BertModel

REQUIRES = ("text",)

_BEGIN = 2
"""Id of the token that stands before every text; the head reads its final state."""


class Config(ModelConfig):
    """The encoder of Devlin et al. 2019 (arXiv:1810.04805); the small sizes are of Turc et al. 2019.

    BERT-base is layers 12, hidden 768, heads 12, feedforward 3072; tiny (arXiv:1908.08962) is 2, 128, 2, 512.
    """

    hidden: int = Field(default=128, ge=1)
    """Features of a token."""
    layers: int = Field(default=2, ge=1)
    """Encoder layers."""
    heads: int = Field(default=2, ge=1)
    """Attention heads; they divide `hidden`."""
    feedforward: int = Field(default=512, ge=1)
    """Hidden units of each layer's feed-forward part."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Probability of zeroing an attention weight or feature in training."""

    @model_validator(mode="after")
    def _divided(self) -> Self:
        if self.hidden % self.heads:
            message = f"heads ({self.heads}) must divide hidden ({self.hidden})"
            raise ValueError(message)
        return self

    def build(self, spec: DataSpec, outputs: int) -> BertClassifier:
        """Return a module from token ids (B, T) to (B, outputs), for at most the data's longest text."""
        return BertClassifier(self, token_input(spec, self.kind()), outputs)


class BertClassifier(nn.Module):
    """Named as in transformers' BertForSequenceClassification, so that its weights fit.

    Shapes: B batch, T time, K outputs.
    """

    def __init__(self, config: Config, tokens: InputSpec, outputs: int) -> None:
        super().__init__()
        self.bert = _bert(config, tokens)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.hidden, outputs)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return (B, K)."""
        begin_B1 = torch.full_like(tokens_BT[:, :1], _BEGIN)
        ids_BT = torch.cat([begin_B1, tokens_BT], dim=1)
        pooled_BH = self.bert(input_ids=ids_BT, attention_mask=real_tokens(ids_BT).long()).pooler_output
        logits_BK: Tensor = self.classifier(self.dropout(pooled_BH))
        return logits_BK


def _bert(config: Config, tokens: InputSpec) -> BertModel:
    from transformers import BertConfig, BertModel

    return BertModel(
        BertConfig(
            vocab_size=tokens.size,
            hidden_size=config.hidden,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.feedforward,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=config.dropout,
            max_position_embeddings=tokens.longest + 1,
            pad_token_id=0,
        )
    )
