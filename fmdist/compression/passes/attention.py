"""The heads of attention modules, whose widths must stay equal when channels go."""

from __future__ import annotations

from torch import nn

_HEADS = ("num_heads", "heads", "num_attention_heads")
"""What attention modules call the number of their heads."""

_PROJECTIONS = ("query", "key", "value", "q_proj", "k_proj", "v_proj", "qkv", "query_key_value")


def heads_of(module: nn.Module) -> dict[nn.Module, int]:
    """Return the projections of attention -> number of heads, whose widths must stay equal."""
    found: dict[nn.Module, int] = {}
    for part in module.modules():
        count = next((value for key in _HEADS if isinstance(value := getattr(part, key, None), int)), None)
        if count is None:
            continue
        if isinstance(part, nn.MultiheadAttention):
            found[part] = count
        for name in _PROJECTIONS:
            if isinstance(projection := getattr(part, name, None), nn.Linear):
                found[projection] = count
    return found


def mend(module: nn.Module) -> None:
    """Tell attention modules the width of a head, where they keep it beside their weights."""
    for part in module.modules():
        query = next(
            (
                found
                for name in ("query", "q_proj")
                if isinstance(found := getattr(part, name, None), nn.Linear)
            ),
            None,
        )
        heads = next((value for key in _HEADS if isinstance(value := getattr(part, key, None), int)), None)
        if heads is None:
            continue
        packed = getattr(part, "qkv", None)
        width = query.out_features if query is not None else 0
        if isinstance(packed, nn.Linear):
            width = packed.out_features // 3
        for key, value in (
            ("all_head_size", width),
            ("attention_head_size", width // heads),
            ("head_dim", width // heads),
        ):
            if width and isinstance(getattr(part, key, None), int):
                setattr(part, key, value)
