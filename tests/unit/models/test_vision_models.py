from __future__ import annotations

import math
import re

import pytest
import timm as timm_library
import torch
import torchvision
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from fmdist.contracts import DataSpec, InputSpec, TargetSpec
from fmdist.errors import CapabilityError
from fmdist.models import alexnet, googlenet, perceptron, timm, vgg, vit
from fmdist.models.torchvision_nets import TorchvisionConfig

TARGET = TargetSpec("class", tuple("0123456789"))
TORCHVISION: dict[str, type[TorchvisionConfig]] = {
    "alexnet": alexnet.Config,
    "vgg": vgg.Config,
    "googlenet": googlenet.Config,
}
each_network = pytest.mark.parametrize("kind", TORCHVISION.values(), ids=TORCHVISION)


def spec_of(*shape: int) -> DataSpec:
    return DataSpec((InputSpec("image", shape),), TARGET)


def size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def on_meta(config: TorchvisionConfig | vit.Config, *shape: int, outputs: int = 1000) -> nn.Module:
    """Return a module that has shapes and no weights, since the real ones are large."""
    with torch.device("meta"):
        return config.build(spec_of(*shape), outputs)


# Perceptron


@pytest.mark.parametrize("shape", [(7,), (2, 3, 5)])
def test_perceptron_is_one_linear_layer(shape: tuple[int, ...]) -> None:
    model = perceptron.Config().build(spec_of(*shape), 4)
    weight, bias = model.parameters()
    rows = image(3, *shape)
    assert torch.allclose(model(rows), rows.flatten(1) @ weight.T + bias)


def test_perceptron_refuses_tokens() -> None:
    spec = DataSpec((InputSpec("text", (None,), "int64", size=9, longest=5),), TARGET)
    with pytest.raises(CapabilityError, match="'perceptron' reads numbers"):
        perceptron.Config().build(spec, 4)


# AlexNet, VGG, GoogLeNet

PUBLISHED = [
    ({"kind": "alexnet"}, "alexnet", 61_100_840),
    ({"kind": "vgg", "depth": 11, "batch_norm": False}, "vgg11", 132_863_336),
    ({"kind": "vgg", "depth": 11}, "vgg11_bn", 132_868_840),
    ({"kind": "vgg", "depth": 13}, "vgg13_bn", 133_053_736),
    ({"kind": "vgg", "depth": 16, "batch_norm": False}, "vgg16", 138_357_544),
    ({"kind": "vgg", "depth": 19}, "vgg19_bn", 143_678_248),
    ({"kind": "googlenet"}, "googlenet", 6_624_904),
]


@pytest.mark.parametrize(("settings", "name", "published"), PUBLISHED, ids=[case[1] for case in PUBLISHED])
def test_full_networks_hold_torchvisions_weights(
    settings: dict[str, object], name: str, published: int
) -> None:
    settings = dict(settings)
    ours = on_meta(TORCHVISION[str(settings.pop("kind"))].model_validate(settings), 3, 224, 224)
    with torch.device("meta"):
        extra = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
        theirs = getattr(torchvision.models, name)(weights=None, **extra)
    assert size(ours) == published
    shapes = [[(key, value.shape) for key, value in net.state_dict().items()] for net in (ours, theirs)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(("name", "side"), [("alexnet", 224), ("googlenet", 64)])
def test_torchvision_gives_the_same_outputs(name: str, side: int) -> None:
    ours = TORCHVISION[name]().build(spec_of(3, side, side), 3).eval()
    extra = {"aux_logits": False, "init_weights": False} if name == "googlenet" else {}
    with torch.device("meta"):
        theirs = getattr(torchvision.models, name)(weights=None, num_classes=3, **extra).eval()
    theirs.load_state_dict(ours.state_dict(), assign=True)
    with torch.no_grad():
        assert torch.equal(ours(image(2, 3, side, side)), theirs(image(2, 3, side, side)))


def test_vgg_features_are_torchvisions() -> None:
    ours = vgg.Config(depth=13).build(spec_of(3, 32, 32), 3).get_submodule("features").eval()
    with torch.device("meta"):
        theirs = torchvision.models.vgg13_bn(weights=None).features.eval()
    theirs.load_state_dict(ours.state_dict(), assign=True)
    with torch.no_grad():
        assert torch.equal(ours(image(2, 3, 32, 32)), theirs(image(2, 3, 32, 32)))


def initial_std(kind: type[TorchvisionConfig], layer: nn.Conv2d | nn.Linear) -> float:
    """Return the standard deviation that torchvision draws a layer's weights with."""
    if kind is googlenet.Config or (kind is vgg.Config and isinstance(layer, nn.Linear)):
        return 0.01
    if kind is vgg.Config:
        return math.sqrt(2 / (layer.weight.numel() / layer.weight.shape[1]))
    return 1 / math.sqrt(3 * layer.weight[0].numel())


@each_network
def test_weights_are_drawn_as_in_torchvision(kind: type[TorchvisionConfig]) -> None:
    layers = [
        part for part in kind(width=32).build(spec_of(1, 64, 64), 10).modules() if hasattr(part, "bias")
    ]
    compared = [
        part for part in layers if isinstance(part, nn.Conv2d | nn.Linear) and part.weight.numel() > 5000
    ]
    assert len(compared) > 5
    for layer in compared:
        assert layer.weight.std().item() == pytest.approx(initial_std(kind, layer), rel=0.05)


@each_network
def test_width_scales_all_layers(kind: type[TorchvisionConfig]) -> None:
    full, quarter = (on_meta(kind(width=width), 3, 64, 64, outputs=10) for width in (64, 16))
    pairs = list(zip(full.parameters(), quarter.parameters(), strict=True))
    assert all(wide.shape[0] == 4 * thin.shape[0] for wide, thin in pairs[:-2])
    assert pairs[-1][0].shape == pairs[-1][1].shape == (10,)


@each_network
def test_width_keeps_the_branches_whole(kind: type[TorchvisionConfig]) -> None:
    with pytest.raises(ValidationError, match="multiple of 4"):
        kind.model_validate({"width": 18})


@each_network
def test_small_images_are_enlarged_inside(kind: type[TorchvisionConfig]) -> None:
    config = kind(width=4)
    side = config.upscale_to
    small = config.build(spec_of(2, 8, 10), 3).eval()
    large = config.build(spec_of(2, side, side * 10 // 8), 3).eval()
    large.load_state_dict(small.state_dict())
    pixels = image(2, 2, 8, 10)
    enlarged = functional.interpolate(pixels, (side, side * 10 // 8), mode="bilinear")
    with torch.no_grad():
        assert torch.allclose(small(pixels), large(enlarged), atol=1e-6)


@each_network
def test_large_images_are_left_alone(kind: type[TorchvisionConfig]) -> None:
    channels, pixels = kind().image_size(spec_of(1, 70, 90))
    assert (channels, pixels) == (1, (70, 90))


@each_network
def test_tiny_images_are_refused(kind: type[TorchvisionConfig]) -> None:
    with pytest.raises(CapabilityError, match="at least 8 x 8, got '7 x 9'"):
        kind().build(spec_of(1, 7, 9), 3)


@each_network
def test_images_are_enlarged_to_what_the_network_needs(kind: type[TorchvisionConfig]) -> None:
    least = 63 if kind is alexnet.Config else 32
    with pytest.raises(ValidationError, match=f"greater than or equal to {least}"):
        kind.model_validate({"upscale_to": least - 1})
    config = kind.model_validate({"upscale_to": least, "width": 4})
    with torch.no_grad():
        assert config.build(spec_of(1, 8, 8), 3).eval()(image(2, 1, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize(
    ("kind", "side", "inputs"),
    [
        (alexnet.Config, 64, 256),
        (alexnet.Config, 224, 256 * 36),
        (vgg.Config, 32, 512),
        (vgg.Config, 96, 512 * 9),
    ],
)
def test_the_classifier_reads_no_feature_twice(kind: type[TorchvisionConfig], side: int, inputs: int) -> None:
    linear = [part for part in on_meta(kind(), 3, side, side).modules() if isinstance(part, nn.Linear)]
    assert linear[0].in_features == inputs


@pytest.mark.parametrize("training", [True, False])
def test_googlenet_has_one_output(training: bool) -> None:
    model = googlenet.Config(width=4).build(spec_of(1, 8, 8), 3).train(training)
    assert model(image(2, 1, 8, 8)).shape == (2, 3)
    assert not [name for name, _ in model.named_parameters() if name.startswith("aux")]


# ViT


def test_vit_of_the_paper_has_the_known_size() -> None:
    config = vit.Config(patch_size=16, width=768, depth=12, heads=12, mlp_ratio=4)
    assert size(on_meta(config, 3, 224, 224)) == 86_567_656


def test_vit_blocks_are_torchs_transformer_layers() -> None:
    block = vit.Block(vit.Config(width=12, heads=3, mlp_ratio=2))
    theirs = nn.TransformerEncoderLayer(
        12, 3, 24, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    )
    names = {
        "query_key_value.weight": "self_attn.in_proj_weight",
        "query_key_value.bias": "self_attn.in_proj_bias",
        "projection.weight": "self_attn.out_proj.weight",
        "projection.bias": "self_attn.out_proj.bias",
    }
    layers = {"mlp.0": "linear1", "mlp.3": "linear2"}
    weights = {}
    for name, value in block.state_dict().items():
        layer, _, part = name.rpartition(".")
        weights[names.get(name, f"{layers.get(layer, layer)}.{part}")] = value
    theirs.load_state_dict(weights)
    assert torch.allclose(block(image(2, 5, 12)), theirs(image(2, 5, 12)), atol=1e-6)


def test_vit_sees_every_patch_in_its_place() -> None:
    model = vit.Config(patch_size=2, depth=1).build(spec_of(1, 4, 6), 3).eval()
    assert model.positions.shape == (1, 2 * 3 + 1, 64)
    pixels = image(1, 1, 4, 6)
    with torch.no_grad():
        logits, swapped = model(pixels), model(pixels.roll(2, dims=3))
        changed = pixels.clone()
        changed[..., -1, -1] += 1
        assert not torch.allclose(logits, swapped)
        assert not torch.allclose(logits, model(changed))


def test_vit_patches_must_cover_the_image() -> None:
    message = "model.patch_size: patches don't cover images of 12 x 8, got 3; allowed: 1, 2, 4"
    with pytest.raises(CapabilityError, match=message):
        vit.Config(patch_size=3).build(spec_of(1, 12, 8), 3)


def test_vit_heads_must_divide_the_width() -> None:
    with pytest.raises(ValidationError, match=re.escape("width (10) must be a multiple of heads (4)")):
        vit.Config(width=10)


# timm


@pytest.mark.parametrize(
    ("name", "shape"),
    [("mobilenetv4_conv_small_050", (2, 8, 8)), ("test_vit", (1, 32, 48)), ("test_vit", (4, 16, 16))],
)
def test_timm_models_fit_the_data(name: str, shape: tuple[int, ...]) -> None:
    model = timm.Config(name=name).build(spec_of(*shape), 3)
    assert model.training
    assert model(image(2, *shape)).shape == (2, 3)


def test_timm_options_reach_the_model() -> None:
    config = timm.Config(name="test_convnext", options={"patch_size": 1, "depths": [1, 1, 1, 2]})
    model = config.build(spec_of(1, 8, 8), 3)
    reference = timm_library.create_model(
        "test_convnext", in_chans=1, num_classes=3, patch_size=1, depths=(1, 1, 1, 2)
    )
    assert size(model) == size(reference) != size(timm_library.create_model("test_convnext", num_classes=3))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("reznet18", "did you mean 'resnet18'"),
        ("resnet18.a1_in1k", "did you mean 'resnet18'"),
        ("hf-hub:timm/resnet18.a1_in1k", "none of this name"),
        ("qwen3_vit_306m_enc", "no classifier"),
    ],
)
def test_timm_names_are_checked(name: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        timm.Config(name=name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch_siz": 2}, "test_vit takes no option 'patch_siz'.*did you mean 'patch_size'"),
        ({"pretrained": True}, "takes no option 'pretrained'"),
        ({"num_classes": 7}, "'num_classes' follows from the data"),
        ({"img_size": 32}, "'img_size' follows from the data"),
        ({"embed_dim": 63}, "test_vit refuses its options"),
    ],
)
def test_timm_options_are_checked(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        timm.Config(name="test_vit", options=options)


def test_timm_options_of_derived_classes_are_known() -> None:
    config = timm.Config(name="deit_tiny_distilled_patch16_224", options={"embed_dim": 96})
    assert config.build(spec_of(1, 16, 16), 3)(image(2, 1, 16, 16)).shape == (2, 3)


def test_timm_checks_leave_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    timm.Config(name="test_vit2", options={"depth": 2})
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "test_convnext"])
def test_timm_models_refuse_images_that_they_can_not_read(name: str) -> None:
    with pytest.raises(CapabilityError, match=f"timm's '{name}' can't read images of 9 x 8 "):
        timm.Config(name=name).build(spec_of(1, 9, 8), 3)
