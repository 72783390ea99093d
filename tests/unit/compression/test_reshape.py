"""A smaller module's sizes can be given to one that was built anew."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import nn

from fmdist.compression import reshape
from fmdist.errors import CheckpointError, CompressionError


def small(width: int) -> Any:
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 5)),
    )


def test_other_sizes_are_recorded_as_json_and_made_again() -> None:
    wide, narrow = small(16), small(6).eval()
    changes = json.loads(json.dumps(reshape.resized(reshape.layout(wide), reshape.layout(narrow))))
    assert [change["module"] for change in changes] == ["0", "1", "5.0", "5.1"]
    assert changes[0] == {
        "module": "0",
        "attributes": {"out_channels": 6},
        "tensors": {"weight": [6, 1, 3, 3]},
    }
    assert changes[2]["attributes"] == {"normalized_shape": [6]}
    reshape.apply(wide, changes)
    wide.load_state_dict(narrow.state_dict())
    image_BCHW = torch.randn(3, 1, 8, 8)
    torch.testing.assert_close(wide.eval()(image_BCHW), narrow(image_BCHW))
    assert all(parameter.requires_grad for parameter in wide.parameters())
    assert wide[5][0].normalized_shape == (6,)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(6, 5),
        nn.Linear(6, 5, bias=False),
        nn.Conv2d(3, 8, (3, 5), stride=2, padding=(1, 2), dilation=1),
        nn.Conv2d(3, 8, 3, padding="same", bias=False, padding_mode="circular"),
    ],
    ids=str,
)
def test_a_factored_layer_takes_the_same_inputs(layer: nn.Module) -> None:
    module = nn.Sequential(nn.Identity(), layer)
    x = torch.randn(2, 6) if isinstance(layer, nn.Linear) else torch.randn(2, 3, 9, 9)
    expected = module(x).shape
    reshape.apply(module, [{"module": "1", "rank": 2}])
    assert module(x).shape == expected
    assert [name for name, _ in module.named_parameters()] == [
        "1.0.weight",
        "1.1.weight",
        *(["1.1.bias"] if layer.bias is not None else []),
    ]


def test_what_was_factored_can_change_its_size_afterwards() -> None:
    module: Any = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
    change = {"module": "0.1", "attributes": {"out_features": 4}, "tensors": {"weight": [4, 2], "bias": [4]}}
    reshape.apply(module, [{"module": "0", "rank": 2}, change])
    assert module[0][1].weight.shape == (4, 2)


def test_another_model_is_refused() -> None:
    with pytest.raises(CheckpointError, match="no such part"):
        reshape.apply(small(4), [{"module": "stem.3", "rank": 1}])


def test_a_table_that_is_not_saved_must_keep_its_size() -> None:
    module = nn.Module()
    module.register_buffer("positions", torch.zeros(4, 8), persistent=False)
    with pytest.raises(CompressionError, match="the table 'positions'"):
        reshape.apply(module, [{"module": "", "attributes": {}, "tensors": {"positions": [4, 4]}}])
