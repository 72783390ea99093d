"""Token sequences of different lengths in one batch: padding (id 0, at the end) never changes a result.

Shapes: B batch, T time, H features. All of it can be exported with B and T free.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Pooling = Literal["last", "mean", "max"]


def real_tokens(tokens_BT: Tensor) -> Tensor:
    """Return which ids (B, T) are no padding, bool (B, T)."""
    return tokens_BT != 0


def last_state(states_BTH: Tensor, real_BT: Tensor) -> Tensor:
    """Return the state (B, H) at each row's last real token; at the first position where there is none."""
    last_B = (real_BT.sum(dim=1) - 1).clamp(min=0)
    index_B1H = last_B[:, None, None].expand(-1, 1, states_BTH.shape[2])
    return states_BTH.gather(1, index_B1H).squeeze(1)


def mean_state(states_BTH: Tensor, real_BT: Tensor) -> Tensor:
    """Return the mean (B, H) over each row's real tokens; zeros where there is none."""
    weights_BT1 = real_BT[:, :, None].to(states_BTH.dtype)
    return (states_BTH * weights_BT1).sum(dim=1) / weights_BT1.sum(dim=1).clamp(min=1)


def max_state(states_BTH: Tensor, real_BT: Tensor) -> Tensor:
    """Return the maximum (B, H) over each row's real tokens; the first state where there is none."""
    # The first state in the place of padding, and not a very small number: INT8 would have to span its range.
    return torch.where(real_BT[:, :, None], states_BTH, states_BTH[:, :1]).amax(dim=1)


def reversed_in_time(states_BTH: Tensor, real_BT: Tensor) -> Tensor:
    """Return each row's real part back to front; its padding stays at the end."""
    time_T = torch.arange(real_BT.shape[1], device=real_BT.device)
    index_BT = torch.where(real_BT, real_BT.sum(dim=1, keepdim=True) - 1 - time_T, time_T)
    return states_BTH.gather(1, index_BT[:, :, None].expand(-1, -1, states_BTH.shape[2]))
