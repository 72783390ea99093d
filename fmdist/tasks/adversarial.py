"""Adversarial training: a generator of images against a discriminator (Goodfellow et al. 2014).

Shapes: B batch, N samples, C channels, H height, W width, Z latent variables.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from fmdist import storage
from fmdist.contracts import Batch, Dataset, DataSpec, InputSpec, LossOut, ModelBuilder, Phase, Roles
from fmdist.errors import CapabilityError, CheckpointError
from fmdist.metrics import Metric, MetricCollection
from fmdist.tasks import noise
from fmdist.tasks.base import SummedLoss, TaskConfig
from fmdist.tasks.decoding.noise import normal
from fmdist.tasks.frechet import CHUNK, Classes, FrechetDistance, Judge
from fmdist.tasks.latent import check_unit, latent_size, read_inputs

POOLED = 8
"""Without a judge, images are averaged down to at most this many pixels a side before they are compared."""

_DISCRIMINATOR, _GENERATOR, _MIXTURE, _REAL_MOVE, _FAKE_MOVE, _OWN_MOVE = range(6)
"""Streams of training noise."""
_BASELINE = 2
"""Stream of the baseline's noise, after those of `fmdist.tasks.decoding.images`."""


class Config(TaskConfig):
    """Two phases, each with an optimizer of its own: ``train.phases`` may set them apart."""

    needs: ClassVar[str] = "adversaries"

    loss: Literal["non_saturating", "hinge", "wgan_gp"] = "non_saturating"
    """Goodfellow et al. 2014 (arXiv:1406.2661); Lim & Ye 2017 (arXiv:1705.02894); Gulrajani et al. 2017
    (arXiv:1704.00028), which wants several `critic_steps`."""
    penalty: float = Field(default=10.0, ge=0)
    """For wgan_gp: weight of the squared distance of the gradient's norm from 1."""
    critic_steps: int = Field(default=1, ge=1)
    """Steps of the discriminator for each of the generator."""
    shift: int = Field(default=0, ge=0)
    """Largest move, in pixels along each axis, of the images that the discriminator sees, real and generated
    alike; keeps it from learning small data by heart (Zhao et al. 2020, arXiv:2006.10738)."""
    judge: Annotated[Path, Field(strict=False)] | None = None
    """The run of a classifier of such images. The Frechet distance is then taken between its features, and
    it says how sure it is of generated images and how many classes it finds; needs data.normalize false.
    Null compares pixels, averaged down to at most 8 x 8. Relative to the working directory."""
    draws: int = Field(default=1, ge=1)
    """Generated images for each of the data's in evaluation."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Seed of the noise in evaluation."""

    @property
    def not_sharded(self) -> str | None:
        """The gradient penalty's reason."""
        penalized = "task.loss 'wgan_gp' differentiates twice, which engines with shards don't follow"
        return penalized if self.loss == "wgan_gp" else None

    def build(self, spec: DataSpec, model: ModelBuilder) -> Adversarial:
        """Return the task; see `TaskConfig.build`.

        Raises:
            CheckpointError: if `judge` isn't a run that was evaluated.
        """
        if len(spec.inputs) > 1 or len(spec.inputs[0].shape) != 3:
            raise CapabilityError(
                field="task.kind",
                problem="'adversarial' learns to make images and the data has none",
                value=[item.name for item in spec.inputs],
                fix="use data of images; for tables see task.kind 'variational'",
            )
        return Adversarial(self, spec, model.build(spec, 0), self._judge(spec, model))

    def _judge(self, spec: DataSpec, model: ModelBuilder) -> Judge | None:
        if self.judge is None:
            return None
        try:
            classifier = model.trained(self.judge)
        except CheckpointError as error:
            raise CheckpointError(
                field="task.judge",
                problem=f"the judge can't be used ({error})",
                value=str(self.judge),
                fix="train the classifier first; the path is relative to the working directory",
            ) from error
        answers = storage.read_json(self.judge / "signature.json")
        fits = tuple(answers["preprocessing"].get("shape", ())) == spec.inputs[0].shape
        if answers["decoding"]["rule"] != "class" or not fits:
            raise CapabilityError(
                field="task.judge",
                problem="the judge must be a classifier of images of the data's shape",
                value=str(self.judge),
                allowed=f"images {spec.inputs[0].shape}, one class each",
            )
        return Judge(classifier, answers["preprocessing"]["mean"], answers["preprocessing"]["std"])


class Adversarial:
    """Targets are not used: any data of images will do."""

    primary: tuple[str, Literal["max", "min"]] = ("frechet_distance", "min")

    def __init__(self, config: Config, spec: DataSpec, built: nn.Module, judge: Judge | None) -> None:
        self.spec = spec
        self._latent = latent_size(built)
        self.inputs: tuple[InputSpec, ...] = (InputSpec("noise", (self._latent,)),)
        self._config = config
        self._judge = judge
        self._name = spec.inputs[0].name
        self._shape = tuple(size or 1 for size in spec.inputs[0].shape)
        self._bounded = bool(getattr(built, "bounded", False))
        self._roles: dict[str, nn.Module] = {}
        for role in ("generator", "discriminator"):
            # An artifact is scored without its model's code: then `built` is a stand-in for either.
            self._roles[role] = built[role] if isinstance(built, nn.ModuleDict) else built
        if judge is not None:
            self._roles["judge"] = judge

    def roles(self) -> dict[str, nn.Module]:
        """Return ``generator`` and ``discriminator``, and ``judge`` where there is one."""
        return dict(self._roles)

    def phases(self) -> tuple[Phase, ...]:
        """Return the discriminator's phase, then the generator's."""
        return (
            Phase("discriminator", self.discriminator_loss),
            Phase("generator", self.generator_loss, self._config.critic_steps),
        )

    def count(self, batch: Batch) -> float:
        """Return the number of samples."""
        return len(batch[self._name])

    def served(self, roles: Roles) -> nn.Module:
        """Return the generator: noise (B, Z) to images (B, C, H, W) in the units of the data's."""
        return roles["generator"]

    def sample_weights(self, targets: NDArray[Any]) -> NDArray[np.float64] | None:
        """Return None: each training sample once per epoch."""
        return None

    def discriminator_loss(self, roles: Roles, batch: Batch, generator: torch.Generator) -> LossOut:
        """Return the discriminator's loss, summed over pairs of a real and a generated image.

        All images go through the discriminator in one forward.

        Raises:
            DataError: if pixels must be in [0, 1] and aren't.
        """
        real = batch[self._name]
        if self._bounded or self._judge is not None:
            check_unit(real, "model.output", "the generator's sigmoid and the judge need pixels in [0, 1]")
        index_B = batch["index"]
        with torch.no_grad():
            fake = roles["generator"](noise.normal(generator, _DISCRIMINATOR, index_B, self._latent))
        images = [
            self._moved(real, generator, _REAL_MOVE, index_B),
            self._moved(fake.to(real.dtype), generator, _FAKE_MOVE, index_B),
        ]
        if self._config.loss == "wgan_gp":
            share = noise.uniform(generator, _MIXTURE, index_B, 1).reshape(-1, 1, 1, 1)
            images.append((share * images[0] + (1 - share) * images[1]).requires_grad_())
        real_B1, fake_B1, *mixed_B1 = roles["discriminator"](torch.cat(images)).float().split(len(real))
        if self._config.loss == "non_saturating":
            losses_B1 = functional.softplus(-real_B1) + functional.softplus(fake_B1)
        elif self._config.loss == "hinge":
            losses_B1 = functional.relu(1 - real_B1) + functional.relu(1 + fake_B1)
        else:
            losses_B1 = fake_B1 - real_B1 + self._config.penalty * gradient_penalty(images[2], mixed_B1[0])
        return LossOut(losses_B1.sum(), len(real))

    def generator_loss(self, roles: Roles, batch: Batch, generator: torch.Generator) -> LossOut:
        """Return the generator's loss, summed over as many images as the batch has.

        The gradient with respect to the images is taken through the plain discriminator, so that each
        engine sees one forward for its backward (DeepSpeed's rule).
        """
        index_B = batch["index"]
        fake = roles["generator"](noise.normal(generator, _GENERATOR, index_B, self._latent))
        leaf = fake.detach().requires_grad_()
        seen = self._moved(leaf, generator, _OWN_MOVE, index_B)
        scores_B1 = self._roles["discriminator"](seen).float()
        saturates = self._config.loss != "non_saturating"
        loss = -scores_B1.sum() if saturates else functional.softplus(-scores_B1).sum()
        (gradient,) = torch.autograd.grad(loss, leaf)
        surrogate = (fake * gradient).sum()
        # of the loss's value, and of the surrogate's gradient
        return LossOut(surrogate + (loss - surrogate).detach(), len(index_B))

    def metrics(self) -> MetricCollection:
        """Return the Frechet distance; with a judge its confidence and the classes it finds, too."""
        size, draws = math.prod(self._shape), self._config.draws
        metrics: dict[str, Metric | MetricCollection] = {
            "frechet_distance": FrechetDistance(self._features, size, draws)
        }
        if self._judge is not None:
            metrics["confidence"] = SummedLoss(self._confidence)
            metrics["classes"] = Classes(self._logits, size, draws)
        return MetricCollection(metrics, compute_groups=False)

    def decoding(self) -> dict[str, Any]:
        """Return the rule that draws images."""
        rule = {"rule": "images", "inputs": [self._name], "shape": list(self._shape)}
        return {**rule, "latent": self._latent, "draws": self._config.draws, "seed": self._config.seed}

    def baseline(self, train: Dataset, part: Dataset) -> NDArray[np.float32]:
        """Return rows of independent pixels with the mean and deviation of the training split's."""
        chunks = read_inputs(train, self._name)
        mean_D = sum(chunk.sum(axis=0, dtype=np.float64) for chunk in chunks) / len(train)
        squares_D = sum(np.square(chunk, dtype=np.float64).sum(axis=0) for chunk in chunks) / len(train)
        std_D = np.sqrt(np.maximum(squares_D - mean_D**2, 0))
        low, high = min(float(chunk.min()) for chunk in chunks), max(float(chunk.max()) for chunk in chunks)
        real_ND = np.concatenate(read_inputs(part, self._name))
        shape = (self._config.draws, real_ND.shape[1])
        drawn = mean_D + std_D * normal(self._config.seed, _BASELINE, np.arange(len(part)), shape)
        return np.concatenate([drawn.clip(low, high).reshape(len(part), -1), real_ND], axis=1).astype(
            np.float32
        )

    def _moved(self, images: Tensor, generator: torch.Generator, stream: int, index_B: Tensor) -> Tensor:
        """Return the images as the discriminator sees them: moved, each by an amount of its own."""
        reach = self._config.shift
        if not reach:
            return images
        moves_B2 = noise.uniform(generator, stream, index_B, 2).mul(2 * reach + 1).long() - reach
        return moved(images, moves_B2)

    def _features(self, rows_ND: Tensor) -> Tensor:
        if self._judge is None:
            pooled = (min(self._shape[1], POOLED), min(self._shape[2], POOLED))
            return functional.adaptive_avg_pool2d(rows_ND.reshape(-1, *self._shape), pooled).flatten(1)
        return self._judged(rows_ND)[0].flatten(1)

    def _confidence(self, rows: Tensor, target: Tensor) -> tuple[Tensor, float]:
        """Return the sum over generated images of the probability of the class that the judge names."""
        generated = rows[:, : self._config.draws * math.prod(self._shape)].reshape(-1, math.prod(self._shape))
        parts = [self._logits(part).softmax(dim=1).amax(dim=1) for part in torch.split(generated, CHUNK)]
        return torch.cat(parts).double().sum(), len(generated)

    def _logits(self, rows_ND: Tensor) -> Tensor:
        return self._judged(rows_ND)[1]

    def _judged(self, rows_ND: Tensor) -> tuple[Tensor, Tensor]:
        assert self._judge is not None
        features_NF, logits_NK = self._judge(rows_ND.reshape(-1, *self._shape).to(self._judge.mean.device))
        return features_NF.cpu(), logits_NK.cpu()


def moved(images: Tensor, moves_B2: Tensor) -> Tensor:
    """Return images (B, C, H, W) moved down and right by whole pixels; what enters repeats the border."""
    reach = int(moves_B2.abs().max())
    batch, channels, height, width = images.shape
    padded = functional.pad(images, [reach] * 4, mode="replicate")
    rows_BH = torch.arange(height, device=images.device) + reach - moves_B2[:, :1]
    columns_BW = torch.arange(width, device=images.device) + reach - moves_B2[:, 1:]
    vertical = rows_BH[:, None, :, None].expand(batch, channels, height, width + 2 * reach)
    horizontal = columns_BW[:, None, None, :].expand(batch, channels, height, width)
    return padded.gather(2, vertical).gather(3, horizontal)


def gradient_penalty(mixed: Tensor, scores_B1: Tensor) -> Tensor:
    """Return (|d score / d image| - 1)^2 for each image, (B, 1), with a graph to differentiate again."""
    (gradient,) = torch.autograd.grad(scores_B1.sum(), mixed, create_graph=True)
    # sqrt has no gradient at 0
    norm_B = (gradient.flatten(1).square().sum(dim=1) + 1e-12).sqrt()
    return (norm_B - 1).square()[:, None]
