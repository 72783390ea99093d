"""LSTM language model: predicts the next token from a recurrent state.

Shapes: B batch, T time, E embedding, K tokens of the vocabulary.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fmdist.contracts import DataSpec
from fmdist.models.base import ModelConfig, token_input


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

    def build(self, spec: DataSpec, outputs: int) -> LstmLanguageModel:
        """Return a module from tokens (B, T) to logits (B, T, outputs)."""
        return LstmLanguageModel(self, token_input(spec, self.kind()).size, outputs)


class LstmLanguageModel(nn.Module):
    """Logits at each position depend on the tokens up to it, so padding at the end changes nothing before."""

    def __init__(self, config: Config, vocabulary: int, outputs: int) -> None:
        super().__init__()
        self.tied = config.tied
        self.embedding = nn.Embedding(vocabulary, config.embedding)
        self.dropout = nn.Dropout(config.dropout)
        between = config.dropout if config.layers > 1 else 0.0
        self.lstm = nn.LSTM(config.embedding, config.hidden, config.layers, batch_first=True, dropout=between)
        self.output = nn.Linear(config.hidden, config.embedding if config.tied else outputs)
        # torch's default deviation of 1 would make tied logits far too large.
        nn.init.normal_(self.embedding.weight, std=config.embedding**-0.5 if config.tied else 1.0)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return logits (B, T, K) of the token after each position."""
        states, _ = self.lstm(self.dropout(self.embedding(tokens_BT)))
        scores: Tensor = self.output(self.dropout(states))
        return functional.linear(scores, self.embedding.weight) if self.tied else scores
