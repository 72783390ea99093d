"""Self-attention over token sequences, as the encoder uses it.

Shapes: B batch, T time, D width, N heads, H width of one head.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional


class SelfAttention(nn.Module):
    """Multi-head scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762, section 3.2)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.output = nn.Linear(width, width)

    def forward(self, states_BTD: Tensor, seen_B11T: Tensor) -> Tensor:
        """Return (B, T, D).

        Args:
            states_BTD: what attends and is attended to.
            seen_B11T: bool, which positions may be attended to.
        """
        mixed_BNTH = functional.scaled_dot_product_attention(
            self._split(self.query(states_BTD)),
            self._split(self.key(states_BTD)),
            self._split(self.value(states_BTD)),
            attn_mask=seen_B11T,
            dropout_p=self.dropout if self.training else 0.0,
        )
        mixed_BTD: Tensor = self.output(mixed_BNTH.transpose(1, 2).flatten(2))
        return mixed_BTD

    def _split(self, states_BTD: Tensor) -> Tensor:
        batch, time, width = states_BTD.shape
        return states_BTD.view(batch, time, self.heads, width // self.heads).transpose(1, 2)


class EncoderLayer(nn.Module):
    """Attention, then two linear layers token by token, each normalized before and added to its input.

    Normalized before and not after: it trains without warm-up (Xiong et al. 2020, arXiv:2002.04745).
    """

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.norm_attention = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, dropout)
        self.norm_feedforward = nn.LayerNorm(width)
        self.feedforward = nn.Sequential(
            nn.Linear(width, feedforward), nn.GELU(), nn.Dropout(dropout), nn.Linear(feedforward, width)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, states_BTD: Tensor, seen_B11T: Tensor) -> Tensor:
        """Return (B, T, D); ``seen_B11T`` as in `SelfAttention.forward`."""
        states_BTD = states_BTD + self.dropout(self.attention(self.norm_attention(states_BTD), seen_B11T))
        added_BTD: Tensor = states_BTD + self.dropout(self.feedforward(self.norm_feedforward(states_BTD)))
        return added_BTD


def sinusoids(length: int, width: int) -> Tensor:
    """Return the positional encoding (T, D) of Vaswani et al. 2017 (arXiv:1706.03762, section 3.5).

    PE(t, 2i) = sin(t / 10000^(2i/D)), PE(t, 2i + 1) = cos(t / 10000^(2i/D)); D must be even.
    """
    time_T1 = torch.arange(length, dtype=torch.float32)[:, None]
    rate_I = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10000.0) / width))
    return torch.stack([torch.sin(time_T1 * rate_I), torch.cos(time_T1 * rate_I)], dim=2).flatten(1)
