"""What is particular to autoencoders and generative adversarial networks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fmdist.contracts import DataSpec, InputSpec, TargetSpec
from fmdist.errors import CapabilityError
from fmdist.models import autoencoder, conv_vae, gan, vae
from fmdist.models.base import ModelConfig
from fmdist.models.pyramid import doubling, halving, sizes

NONE = TargetSpec("none")


def images(*shape: int) -> DataSpec:
    return DataSpec((InputSpec("image", shape),), NONE)


TABLE = DataSpec((InputSpec("features", (5,)),), NONE)
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 13, 9)]


def some(shape: tuple[int, ...], batch: int = 3) -> Tensor:
    return torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("side", range(2, 12))
def test_doubling_undoes_halving_at_every_size(side: int) -> None:
    ((top, left), (low, right)) = sizes(side, side + 3, 1)
    x = some((1, top, left))
    half = halving(1, 4)(x)
    assert half.shape[2:] == (low, right)
    assert doubling(4, 1, (top, left))(half).shape == x.shape


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("config", [vae.Config(hidden=(16,)), conv_vae.Config(channels=(4, 8), hidden=16)])
def test_codes_are_distributions_and_decode_to_the_inputs_shape(
    config: vae.Config | conv_vae.Config, shape: tuple[int, ...]
) -> None:
    model = config.build(images(*shape), 0)
    mean, log_variance = model.encode(some(shape))
    assert mean.shape == log_variance.shape == (3, config.latent)
    assert model.decode(mean).shape == (3, *shape)
    assert model.latent == config.latent


@pytest.mark.parametrize("spec", [images(1, 8, 8), TABLE])
def test_an_autoencoder_takes_images_and_tables(spec: DataSpec) -> None:
    shape = tuple(size or 0 for size in spec.inputs[0].shape)
    model = autoencoder.Config(hidden=(7, 6), latent=2).build(spec, 0)
    assert model.encode(some(shape)).shape == (3, 2)
    assert model.decode(torch.zeros(3, 2)).shape == (3, *shape)
    widths = [layer.in_features for layer in model.encoder.children() if isinstance(layer, nn.Linear)]
    assert widths == [math.prod(shape), 7, 6]
    assert [layer.in_features for layer in model.decoder.children() if isinstance(layer, nn.Linear)] == [
        2,
        6,
        7,
    ]


def test_without_hidden_layers_it_is_linear() -> None:
    model = autoencoder.Config(hidden=(), latent=2).build(TABLE, 0)
    zero = model.decode(model.encode(torch.zeros(1, 5)))
    one, two = some((5,), 1), some((5,), 2)[1:]

    def centred(x: Tensor) -> Tensor:
        return model.decode(model.encode(x)) - zero

    torch.testing.assert_close(centred(one + two), centred(one) + centred(two))


class TestGan:
    @pytest.mark.parametrize("shape", SHAPES)
    def test_images_and_scores_fit_the_data(self, shape: tuple[int, ...]) -> None:
        built = gan.Config(channels=(16, 8, 4), latent=5).build(images(*shape), 0)
        made = built["generator"](torch.randn(3, 5))
        assert made.shape == (3, *shape)
        assert built["discriminator"](made).shape == (3, 1)
        assert built.latent == 5

    def test_a_sigmoid_keeps_pixels_in_their_range(self) -> None:
        spec = images(1, 8, 8)
        linear, bounded = (
            gan.Config(channels=(16, 8), output=output).build(spec, 0) for output in ("linear", "sigmoid")
        )
        noise = 20 * torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
        inside = bounded["generator"](noise)
        assert 0 <= float(inside.detach().min()) < float(inside.detach().max()) <= 1
        assert float(linear["generator"](noise).detach().min()) < 0
        assert (bounded.bounded, linear.bounded) == (True, False)

    @pytest.mark.parametrize("norm", ["none", "group"])
    def test_the_discriminator_judges_each_image_by_itself(self, norm: str) -> None:
        config = gan.Config.model_validate({"channels": (16, 8), "discriminator_norm": norm})
        discriminator = config.build(images(1, 8, 8), 0)["discriminator"]
        x = some((1, 8, 8), 6)
        torch.testing.assert_close(discriminator(x)[2:3], discriminator(x[2:3]))
        assert any(isinstance(part, nn.GroupNorm) for part in discriminator.modules()) == (norm == "group")

    def test_group_norm_makes_the_generator_independent_of_the_batch(self) -> None:
        noise = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
        for norm, alone in (("group", True), ("batch", False)):
            config = gan.Config.model_validate({"channels": (16, 8), "norm": norm})
            generator = config.build(images(1, 8, 8), 0)["generator"]
            assert torch.allclose(generator(noise)[:2], generator(noise[:2]), atol=1e-5) == alone


@pytest.mark.parametrize("config", [conv_vae.Config(), gan.Config()])
def test_convolutions_need_images_of_some_size(config: ModelConfig) -> None:
    with pytest.raises(CapabilityError, match="another shape"):
        config.build(TABLE, 0)
    with pytest.raises(CapabilityError, match="at least 4 x 4"):
        config.build(images(1, 3, 9), 0)
