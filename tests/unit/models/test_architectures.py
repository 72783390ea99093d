from __future__ import annotations

import pytest
import torch
from torch import nn

from fmdist.contracts import DataSpec, InputSpec, TargetSpec
from fmdist.errors import CapabilityError
from fmdist.models import cnn, lenet5, mlp, resnet

TARGET = TargetSpec("class", tuple("0123456789"))


def spec_of(*shape: int) -> DataSpec:
    return DataSpec((InputSpec("image", shape),), TARGET)


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def count(module: nn.Module, *kinds: type[nn.Module]) -> int:
    return sum(isinstance(part, kinds) for part in module.modules())


# The paper's shortcuts have no parameters (0.27, 0.46, 0.66 and 0.85 million); ours have these.
PROJECTIONS = 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64


@pytest.mark.parametrize(("depth", "paper"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018)])
def test_small_resnets_are_the_papers(depth: int, paper: int) -> None:
    model = resnet.Config.model_validate({"depth": depth}).build(spec_of(3, 32, 32), 10)
    assert size(model) == paper + PROJECTIONS
    convolutions = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
    assert sum(part.kernel_size == (3, 3) for part in convolutions) + count(model, nn.Linear) == depth
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(("depth", "published"), [(18, 11_689_512), (34, 21_797_672), (50, 25_557_032)])
def test_large_resnets_are_torchvisions(depth: int, published: int) -> None:
    model = resnet.Config.model_validate({"depth": depth}).build(spec_of(3, 32, 32), 1000).eval()
    assert size(model) == published
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)


def test_large_resnets_take_grey_images() -> None:
    model = resnet.Config(depth=18).build(spec_of(1, 32, 32), 10).eval()
    with torch.inference_mode():
        assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 10)


def test_large_resnets_refuse_small_images() -> None:
    with pytest.raises(CapabilityError, match="at least 32 x 32, got '28 x 28'"):
        resnet.Config(depth=18).build(spec_of(1, 28, 28), 10)


def test_resnet_width_scales_the_stages() -> None:
    model = resnet.Config(width=4).build(spec_of(1, 8, 8), 10)
    assert isinstance(model, resnet.SmallResNet)
    assert model.head.in_features == 16


@pytest.mark.parametrize("side", [28, 32])
def test_lenet5_has_the_known_size(side: int) -> None:
    assert size(lenet5.Config().build(spec_of(1, side, side), 10)) == 61_706


@pytest.mark.parametrize("height", [8, 11, 16, 27, 28, 31, 33, 40])
def test_lenet5_takes_any_image_from_8(height: int) -> None:
    model = lenet5.Config(width=2).build(spec_of(2, height, 8), 3)
    assert model(torch.zeros(2, 2, height, 8)).shape == (2, 3)


def test_lenet5_refuses_smaller_images() -> None:
    with pytest.raises(CapabilityError, match="at least 8 x 8"):
        lenet5.Config().build(spec_of(1, 7, 9), 3)


@pytest.mark.parametrize("activation", mlp.ACTIVATIONS)
def test_mlp_layers_follow_the_recipe(activation: str) -> None:
    config = mlp.Config.model_validate({"hidden": (6, 5), "activation": activation, "dropout": 0.1})
    model = config.build(spec_of(1, 2, 3), 4)
    assert [(part.in_features, part.out_features) for part in model if isinstance(part, nn.Linear)] == [
        (6, 6),
        (6, 5),
        (5, 4),
    ]
    assert count(model, mlp.ACTIVATIONS[activation]) == 2
    assert count(model, nn.Dropout) == 2


def test_mlp_without_hidden_layers_is_linear() -> None:
    assert size(mlp.Config(hidden=()).build(spec_of(6), 4)) == 6 * 4 + 4


@pytest.mark.parametrize(("norm", "layer"), [("batch", nn.BatchNorm1d), ("layer", nn.LayerNorm)])
def test_mlp_normalizes(norm: str, layer: type[nn.Module]) -> None:
    model = mlp.Config.model_validate({"norm": norm, "hidden": (8, 8, 8)}).build(spec_of(6), 4)
    assert count(model, layer) == 3


def test_cnn_stages_follow_the_recipe() -> None:
    model = cnn.Config(channels=(4, 8), blocks=3).build(spec_of(3, 8, 8), 5)
    convolutions = [part for part in model if isinstance(part, nn.Conv2d)]
    assert [part.out_channels for part in convolutions] == [4, 4, 4, 8, 8, 8]
    assert count(model, nn.MaxPool2d) == 1


def test_cnn_needs_a_pixel_after_every_pooling() -> None:
    config = cnn.Config(channels=(4, 4, 4, 4))
    assert config.build(spec_of(1, 8, 8), 5)(torch.zeros(2, 1, 8, 8)).shape == (2, 5)
    with pytest.raises(CapabilityError, match="at least 8 x 8"):
        config.build(spec_of(1, 7, 8), 5)


@pytest.mark.parametrize(("channels", "groups"), [(16, 8), (6, 1)])
def test_cnn_group_norm_divides_the_channels(channels: int, groups: int) -> None:
    model = cnn.Config(channels=(channels,), norm="group").build(spec_of(1, 8, 8), 5)
    assert [part.num_groups for part in model if isinstance(part, nn.GroupNorm)] == [groups, groups]
