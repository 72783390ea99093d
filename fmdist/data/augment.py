"""Random changes of training images, through torchvision's v2 transforms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import torch

from fmdist import component
from fmdist.contracts import Draw
from fmdist.data.config import AugmentConfig
from fmdist.data.preprocess import Raw
from fmdist.errors import DataError


def image_augment(config: AugmentConfig, mode: Literal["L", "RGB"], seed: int) -> Callable[[Raw, Draw], Raw]:
    """Return a function that changes uint8 images (B, C, H, W) by keys of (seed, epoch, sample).

    Neither the order nor the number of workers changes what a sample becomes in an epoch. Torch's global
    random state is left as it was.

    Raises:
        DependencyMissing: if torchvision is not installed.
        DataError: if grey images are to change their saturation or hue.
    """
    component.require("vision", needed_by="data.augment")
    if mode == "L" and config.color is not None and (config.color.saturation or config.color.hue):
        raise DataError(
            field="data.augment.color",
            problem="grey images have neither saturation nor hue",
            fix="set both to 0",
        )
    return _ImageAugment(config, seed)


class _ImageAugment:
    """Can be pickled, since workers may be started with ``spawn``."""

    def __init__(self, config: AugmentConfig, seed: int) -> None:
        self.seed = seed
        self.padding = config.crop_padding
        self.steps = _transforms(config)

    def __call__(self, raw: Raw, draw: Draw) -> Raw:
        images = torch.from_numpy(raw)
        changed = torch.empty_like(images)
        with torch.random.fork_rng(devices=[]):
            for position, index in enumerate(draw.indices.tolist()):
                # the generator that the transforms draw from; torch.manual_seed would seed the GPUs too
                torch.default_generator.manual_seed(_key(self.seed, draw.epoch, index))
                changed[position] = self._change(images[position])
        result: Raw = changed.numpy()
        return result

    def _change(self, image: torch.Tensor) -> torch.Tensor:
        for step in self.steps:
            image = step(image)
        return _random_crop(image, self.padding) if self.padding else image


def _key(seed: int, epoch: int, index: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _transforms(config: AugmentConfig) -> list[Callable[[torch.Tensor], torch.Tensor]]:
    from torchvision.transforms import InterpolationMode, v2

    steps: list[Callable[[torch.Tensor], torch.Tensor]] = []
    if config.horizontal_flip:
        steps.append(v2.RandomHorizontalFlip(config.horizontal_flip))
    if config.vertical_flip:
        steps.append(v2.RandomVerticalFlip(config.vertical_flip))
    if config.rotate or config.scale is not None:
        scale = None if config.scale is None else (config.scale.min, config.scale.max)
        steps.append(v2.RandomAffine(config.rotate, scale=scale, interpolation=InterpolationMode.BILINEAR))
    if config.color is not None:
        color = config.color
        steps.append(v2.ColorJitter(color.brightness, color.contrast, color.saturation, color.hue))
    return steps


def _random_crop(image: torch.Tensor, padding: int) -> torch.Tensor:
    # by hand: v2.RandomCrop takes three times as long on a small image
    height, width = image.shape[-2:]
    padded = torch.nn.functional.pad(image, (padding, padding, padding, padding))
    top, left = torch.randint(0, 2 * padding + 1, (2,)).tolist()
    return padded[..., top : top + height, left : left + width]
