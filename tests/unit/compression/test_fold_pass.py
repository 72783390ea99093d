"""BatchNorm is folded where the outputs stay the same, and nowhere else."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fmdist.compression import reshape
from fmdist.compression.passes import fold
from fmdist.errors import CapabilityError
from tests.unit.compression.benches import bench


def used(norm: nn.Module) -> nn.Module:
    """Give a BatchNorm statistics and weights that aren't those of a new one."""
    for value in (*norm.parameters(), *(buffer for buffer in norm.buffers() if buffer.is_floating_point())):
        nn.init.uniform_(value, 0.5, 2.0)
    return norm


class Residual(nn.Module):
    """Its convolution's output goes past the BatchNorm too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.norms = nn.ModuleList(
            [used(nn.BatchNorm2d(4)), used(nn.BatchNorm2d(4)), used(nn.BatchNorm2d(4))]
        )
        self.head = nn.Linear(4, 10)

    def forward(self, image: Tensor) -> Tensor:
        found = self.norms[0](self.first(image))
        between = self.second(found.relu())
        found = self.norms[2]((self.norms[1](between) + between).relu())
        return torch.as_tensor(self.head(found.mean((2, 3))))


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, bias=False),
        used(nn.BatchNorm2d(4)),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(144, 8),
        used(nn.BatchNorm1d(8)),
        nn.Linear(8, 10),
    )


def transposed() -> nn.Module:
    return nn.Sequential(
        nn.ConvTranspose2d(1, 4, 3), used(nn.BatchNorm2d(4)), nn.Flatten(), nn.Linear(400, 10)
    )


@pytest.mark.parametrize(
    ("build", "folded"), [(plain, ["1", "5"]), (transposed, ["1"]), (Residual, ["norms.0"])]
)
def test_the_outputs_stay_the_same(build: Callable[[], nn.Module], folded: list[str]) -> None:
    module = build().eval()
    images = torch.randn(5, 1, 8, 8)
    original, before = copy.deepcopy(module), reshape.layout(module)
    expected = module(images)
    outcome = fold.Config().reduce(bench(module))
    assert outcome.replaced == [{"module": name, "identity": True} for name in folded]
    assert torch.allclose(module(images), expected, atol=1e-5)
    assert outcome.coverage["changed_layers"] == len(folded)
    # Built anew from what is recorded, the weights fit.
    reshape.apply(original, [*outcome.replaced, *reshape.resized(before, reshape.layout(module))])
    original.load_state_dict(module.state_dict())
    assert torch.allclose(original(images), expected, atol=1e-5)


def test_what_is_left_has_its_reason() -> None:
    outcome = fold.Config(ignore=("norms.0",)).reduce(bench(Residual().eval()))
    reasons = {left["name"]: left["reason"] for left in outcome.coverage["left"]}
    assert reasons == {
        "norms.0": "ignored by the recipe",
        "norms.1": "the output of second is used elsewhere too",
        "norms.2": "its input is not the output of one convolution or linear layer",
    }
    assert not outcome.replaced


def test_a_model_without_batchnorm_is_refused() -> None:
    with pytest.raises(CapabilityError, match="no BatchNorm that could be folded"):
        fold.Config().reduce(bench(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))))


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(CapabilityError, match=r"ignore: no layer has this name.*norms.0"):
        fold.Config(ignore=("norm.0",)).reduce(bench(Residual().eval()))
