"""How generated images are judged: by the features and the answers of a trained classifier.

Shapes: N samples, F features, K classes, C channels, H height, W width, M generated images per sample.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from fmdist.errors import CapabilityError
from fmdist.metrics import Metric

CHUNK = 1024
"""Images that are judged at a time."""


class Judge(nn.Module):
    """A trained classifier of images; it stays in evaluation mode and is never trained."""

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.classifier = classifier
        self.register_buffer("mean", torch.tensor(list(mean)).reshape(-1, 1, 1))
        self.register_buffer("std", torch.tensor(list(std)).reshape(-1, 1, 1))
        self.eval().requires_grad_(False)
        if not any(isinstance(module, nn.Linear) for module in classifier.modules()):
            raise CapabilityError(
                field="task.judge",
                problem="the judge has no linear layer, whose inputs would be the features",
                fix="name the run of a classifier such as 'cnn'",
            )

    def train(self, mode: bool = True) -> Judge:
        """Stay in evaluation mode."""
        super().train(False)
        return self

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inputs of the last linear layer (N, F) and the logits (N, K).

        Args:
            pixels: (N, C, H, W) in [0, 1].
        """
        seen: list[Tensor] = []

        def keep(module: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
            seen.append(inputs[0])

        last = [module for module in self.classifier.modules() if isinstance(module, nn.Linear)][-1]
        handle = last.register_forward_hook(keep)
        try:
            logits_NK = self.classifier((pixels - self.mean) / self.std)
        finally:
            handle.remove()
        return seen[0], logits_NK


class FrechetDistance(Metric):
    """Distance of two normal distributions fitted to features of generated and of real images.

    Heusel et al. 2017 (arXiv:1706.08500), with the features of any network. It falls with the number of
    images that it is estimated from, so compare only distances of equally many.
    """

    bootstraps: ClassVar[bool] = False
    """A resample has fewer different images, so its distance is larger: an interval would lie too high."""

    higher_is_better = False
    full_state_update = False
    count: Tensor
    total: Tensor
    products: Tensor

    def __init__(self, features: Callable[[Tensor], Tensor], size: int, images: int) -> None:
        """Take rows (N, (M + 1) size), of ``images`` = M generated images and the real one."""
        super().__init__()
        self._features = features
        self._size = size
        self._images = images
        width = features(torch.zeros(1, size)).shape[1]
        zeros = torch.zeros(2, width, dtype=torch.float64)
        # generated, real
        self.add_state("count", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", zeros, dist_reduce_fx="sum")
        self.add_state("products", torch.zeros(2, width, width, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, rows: Tensor, target: Tensor) -> None:
        """Add samples: rows (N, (M + 1) size); the target is not used."""
        split = self._images * self._size
        for place, pixels in enumerate((rows[:, :split].reshape(-1, self._size), rows[:, split:])):
            for part in torch.split(pixels, CHUNK):
                features_NF = self._features(part).double()
                self.count[place] += len(part)
                self.total[place] += features_NF.sum(dim=0)
                self.products[place] += features_NF.T @ features_NF

    def compute(self) -> Tensor:
        """Return the squared distance, in squared units of the features."""
        means, covariances = [], []
        for count, total_F, products_FF in zip(self.count, self.total, self.products, strict=True):
            mean_F = total_F / count
            means.append(mean_F)
            covariances.append((products_FF - count * torch.outer(mean_F, mean_F)) / (count - 1).clamp(min=1))
        return frechet_distance(means[0], covariances[0], means[1], covariances[1])


class Classes(Metric):
    """How many of the judge's K classes it finds among generated images."""

    higher_is_better = True
    full_state_update = False
    found: Tensor

    def __init__(self, logits: Callable[[Tensor], Tensor], size: int, images: int) -> None:
        super().__init__()
        self._logits = logits
        self._size = size
        self._images = images
        classes = logits(torch.zeros(1, size)).shape[1]
        self.add_state("found", torch.zeros(classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, rows: Tensor, target: Tensor) -> None:
        """Add samples: rows (N, (M + 1) size); the target is not used."""
        for part in torch.split(rows[:, : self._images * self._size].reshape(-1, self._size), CHUNK):
            self.found += self._logits(part).argmax(dim=1).bincount(minlength=len(self.found))

    def compute(self) -> Tensor:
        """Return the number of classes that were named at least once."""
        return (self.found > 0).sum().double()


def frechet_distance(mean_F: Tensor, covariance_FF: Tensor, other_F: Tensor, other_FF: Tensor) -> Tensor:
    """Return the squared Frechet distance of two normal distributions (Dowson & Landau 1982).

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)), doi:10.1016/0047-259X(82)90077-X. The trace of the root is
    that of the symmetric C1^(1/2) C2 C1^(1/2), which has real eigenvalues.

    >>> one, two = torch.eye(2), 4 * torch.eye(2)
    >>> round(float(frechet_distance(torch.zeros(2), one, torch.ones(2), two)), 4)
    4.0
    """
    values_F, vectors_FF = torch.linalg.eigh(covariance_FF)
    root_FF = (vectors_FF * values_F.clamp(min=0).sqrt()) @ vectors_FF.T
    cross_F = torch.linalg.eigvalsh(root_FF @ other_FF @ root_FF).clamp(min=0)
    traces = covariance_FF.trace() + other_FF.trace() - 2 * cross_F.sqrt().sum()
    distance: Tensor = (mean_F - other_F).square().sum() + traces
    return distance
