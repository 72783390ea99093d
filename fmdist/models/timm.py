"""Any image classifier of timm (PyTorch Image Models), by its name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from pydantic import Field, ValidationInfo, field_validator
from torch import nn

from fmdist.contracts import DataSpec
from fmdist.errors import CapabilityError, did_you_mean
from fmdist.models.base import ModelConfig, image_input

REQUIRES = ("timm",)

FROM_DATA = ("in_chans", "num_classes", "img_size")
"""Options of timm's models that follow from the data."""
SMALLEST = 8
"""Pixels a side below which no model is tried."""


class Config(ModelConfig):
    """A model of github.com/huggingface/pytorch-image-models, in its own random initialization.

    Nothing is downloaded. Channels and outputs follow from the data, and so does the image size where the
    model takes one; whether it can read images of that size is tried before training.
    """

    name: str = "mobilenetv4_conv_small_050"
    """As `timm.list_models()` gives it, without a tag, since tags stand for pretrained weights."""
    options: dict[str, Any] = Field(default_factory=dict, validate_default=True)
    """Further arguments of the model's class, such as `drop_path_rate: 0.1` or `patch_size: 2`."""

    @field_validator("name")
    @classmethod
    def _known_name(cls, name: str) -> str:
        import timm

        known = timm.list_models()
        if name not in known:
            close = did_you_mean(name.partition(".")[0], known)
            message = f"timm has {len(known)} models and none of this name"
            raise ValueError(f"{message}; {close}" if close else message)
        if "num_classes" not in _parameters(name):
            message = "this model of timm is no classifier; choose one that takes num_classes"
            raise ValueError(message)
        return name

    @field_validator("options")
    @classmethod
    def _known_options(cls, options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        name = info.data.get("name")
        if name is None or not options:
            return options
        allowed = sorted(_parameters(name).difference(FROM_DATA))
        for option in options:
            if option in FROM_DATA:
                message = f"'{option}' follows from the data; leave it out"
                raise ValueError(message)
            if option not in allowed:
                message = f"{name} takes no option '{option}'; allowed: {', '.join(allowed)}"
                close = did_you_mean(option, allowed)
                raise ValueError(f"{message}; {close}" if close else message)
        try:
            _without_weights(name, options)
        except Exception as error:
            # Whatever the constructor raises is about what it was given.
            message = f"{name} refuses its options ({type(error).__name__}: {error})"
            raise ValueError(message) from None
        return options

    def build(self, spec: DataSpec, outputs: int) -> nn.Module:
        """Return a module from (B, C, H, W) to (B, outputs)."""
        import timm

        channels, height, width = image_input(spec, self.kind(), smallest=SMALLEST)
        settings = {**_with_tuples(self.options), "num_classes": outputs, "in_chans": channels}
        if "img_size" in _parameters(self.name):
            settings["img_size"] = (height, width)
        try:
            net: nn.Module = timm.create_model(self.name, **settings)
            net.eval()
            with torch.no_grad():
                net(torch.zeros(1, channels, height, width))
        except (ArithmeticError, AssertionError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise CapabilityError(
                field="model.name",
                problem=f"timm's '{self.name}' can't read images of {height} x {width} "
                f"({type(error).__name__}: {error})",
                value=self.name,
                fix="use larger images, a model for smaller ones, or options such as a smaller patch_size",
            ) from error
        return net.train()


@cache
def _parameters(name: str) -> frozenset[str]:
    """Return the named arguments of a model's class and the classes that it derives from."""
    classes = type(_without_weights(name, {})).__mro__
    made = [kind for kind in classes[: classes.index(nn.Module)] if "__init__" in vars(kind)]
    found = [item for kind in made for item in inspect.signature(kind).parameters.values()]
    named = {item.name for item in found if item.kind not in (item.VAR_KEYWORD, item.VAR_POSITIONAL)}
    return frozenset(named - {"cfg", "device", "dtype"})


def _without_weights(name: str, options: Mapping[str, Any]) -> nn.Module:
    """Return the model without memory for its weights, which takes a fraction of a second."""
    import timm

    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        net: nn.Module = timm.create_model(name, **_with_tuples(options))
    return net


def _with_tuples(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with lists as tuples, which YAML doesn't have."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
