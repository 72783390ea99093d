"""Tasks of several phases: a small GAN through the one loop, against a loop written by hand."""

from __future__ import annotations

import copy
import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fmdist.contracts import Batch, Dataset, DataSpec, Draw, LossOut, Phase, Roles
from fmdist.data import digits
from fmdist.data.plan import BatchPlan
from fmdist.data.splits import DataSplits
from fmdist.errors import Interrupted
from fmdist.metrics import Metric, MetricCollection
from fmdist.training.checkpoint import weights_digest
from fmdist.training.loop import step_seed

if TYPE_CHECKING:
    from tests.conftest import Fit

NOISE = 4


class Realness(Metric):
    """The mean probability that the discriminator gives to real images."""

    full_state_update = False
    total: Tensor
    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")
        self.add_state("seen", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, outputs: Tensor, target: Tensor) -> None:
        self.total += outputs.sigmoid().sum()
        self.seen += len(target)

    def compute(self) -> Tensor:
        return self.total / self.seen


class Gan:
    """Goodfellow et al. 2014 (arXiv:1406.2661), with the generator's loss that doesn't saturate.

    ``careful``: one forward per engine per backward, as DeepSpeed asks: the discriminator sees real and fake
    in one batch, and the generator's gradient comes through it without touching its parameters. Otherwise
    the generator's loss goes backward through the discriminator too, and leaves gradients there.
    """

    primary: tuple[str, Literal["max", "min"]] = ("realness", "max")

    def __init__(self, spec: DataSpec, careful: bool = True, generator_every: int = 1) -> None:
        self.spec = spec
        self.inputs = spec.inputs
        self.careful = careful
        self.generator_every = generator_every
        self.stop_at: int | None = None
        self.steps: dict[str, int] = {"generator": 0, "discriminator": 0}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self._roles: dict[str, nn.Module] = {
                "generator": nn.Sequential(nn.Linear(NOISE, 16), nn.ReLU(), nn.Linear(16, 64)),
                "discriminator": nn.Sequential(
                    nn.Flatten(), nn.Linear(64, 16), nn.LeakyReLU(0.2), nn.Dropout(0.1), nn.Linear(16, 1)
                ),
            }

    def roles(self) -> dict[str, nn.Module]:
        return self._roles

    def phases(self) -> Sequence[Phase]:
        return (
            Phase("discriminator", self.discriminator_loss),
            Phase("generator", self.generator_loss, self.generator_every),
        )

    def count(self, batch: Batch) -> float:
        return len(batch["image"])

    def served(self, roles: Roles) -> nn.Module:
        return roles["discriminator"]

    def metrics(self) -> MetricCollection:
        return MetricCollection({"realness": Realness()})

    def decoding(self) -> dict[str, Any]:
        return {"rule": "value", "inputs": ["image"], "names": ["real"]}

    def baseline(self, train: Dataset, part: Dataset) -> NDArray[np.float32]:
        return np.zeros((len(part), 1), np.float32)

    def sample_weights(self, targets: NDArray[Any]) -> None:
        return None

    def discriminator_loss(self, roles: Roles, batch: Batch, generator: torch.Generator) -> LossOut:
        self.steps["discriminator"] += 1
        if self.steps["discriminator"] == self.stop_at:
            signal.raise_signal(signal.SIGTERM)
        real = batch["image"].flatten(1)
        with torch.no_grad():
            fake = roles["generator"](noise(len(real), generator))
        logits = roles["discriminator"](torch.cat([real, fake])).squeeze(1)
        wanted = torch.cat([torch.ones(len(real)), torch.zeros(len(real))])
        loss = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / 2
        return LossOut(loss, len(real), {"fooled": (logits[len(real) :] > 0).sum()})

    def generator_loss(self, roles: Roles, batch: Batch, generator: torch.Generator) -> LossOut:
        self.steps["generator"] += 1
        fake = roles["generator"](noise(len(batch["image"]), generator))
        if not self.careful:
            return LossOut(fooling(self._roles["discriminator"], fake), len(fake))
        shown = fake.detach().requires_grad_()
        loss = fooling(self._roles["discriminator"], shown)
        (gradient,) = torch.autograd.grad(loss, shown)
        through = (fake * gradient).sum()
        return LossOut(through + (loss - through).detach(), len(fake))


def noise(size: int, generator: torch.Generator) -> Tensor:
    return torch.randn(size, NOISE, generator=generator)


def fooling(discriminator: nn.Module, fake: Tensor) -> Tensor:
    logits = discriminator(fake).squeeze(1)
    return functional.binary_cross_entropy_with_logits(logits, torch.ones(len(fake)), reduction="sum")


@pytest.fixture(scope="module")
def data() -> DataSplits:
    return digits.Config().build(seed=0)


TRAIN = {
    "epochs": 2,
    "batch_size": 128,
    "optimizer": "Adam",
    "lr": 2e-3,
    "options": {"betas": [0.5, 0.999]},
    "phases": {"discriminator": {"lr": 5e-4}, "generator": {"optimizer": "RMSprop", "options": {}}},
    "trackers": ("tensorboard",),
}


def by_hand(task: Gan, data: DataSplits) -> dict[str, nn.Module]:
    """Return the roles after the same training, in plain torch."""
    generator, discriminator = (copy.deepcopy(task.roles()[role]) for role in ("generator", "discriminator"))
    g_optimizer = torch.optim.RMSprop(generator.parameters(), lr=2e-3)
    d_optimizer = torch.optim.Adam(discriminator.parameters(), lr=5e-4, betas=(0.5, 0.999))
    plan = BatchPlan(len(data.train), 128, seed=0)
    random, step = torch.Generator(), 0
    for epoch in range(2):
        for position in range(plan.steps_per_epoch):
            real = data.train.__getitems__(Draw(epoch, plan.indices(epoch, position)))["image"].flatten(1)
            random.manual_seed(step_seed(0, epoch, position))
            torch.manual_seed(step_seed(0, epoch, position))
            fake = generator(noise(len(real), random)).detach()
            logits = discriminator(torch.cat([real, fake])).squeeze(1)
            wanted = torch.cat([torch.ones(len(real)), torch.zeros(len(real))])
            loss = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="sum") / 2
            d_optimizer.zero_grad()
            torch.autograd.backward(loss / len(real))
            d_optimizer.step()
            if step % task.generator_every == 0:
                loss = fooling(discriminator, generator(noise(len(real), random)))
                g_optimizer.zero_grad()
                torch.autograd.backward(loss / len(real))
                g_optimizer.step()
            step += 1
    return {"generator": generator, "discriminator": discriminator}


@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("careful", [True, False])
def test_two_phases_equal_a_loop_by_hand(
    data: DataSplits, fit: Fit, tmp_path: Path, careful: bool, every: int
) -> None:
    task = Gan(data.spec, careful, every)
    start = {role: weights_digest(module) for role, module in task.roles().items()}
    expected = by_hand(task, data)
    progress = fit(task, data, TRAIN, tmp_path / "run")
    assert task.steps == {"discriminator": progress.step, "generator": -(-progress.step // every)}
    for role, module in task.roles().items():
        assert weights_digest(module) != start[role]
        for name, value in module.state_dict().items():
            torch.testing.assert_close(value, expected[role].state_dict()[name], rtol=1e-5, atol=1e-7)


def test_an_interrupted_gan_goes_on_bit_by_bit(data: DataSplits, fit: Fit, tmp_path: Path) -> None:
    whole = Gan(data.spec, generator_every=2)
    fit(whole, data, TRAIN, tmp_path / "whole")
    first = Gan(data.spec, generator_every=2)
    first.stop_at = 13  # in the middle of the second epoch, before a step of the discriminator alone
    with pytest.raises(Interrupted, match="Saved at step 13"):
        fit(first, data, TRAIN, tmp_path / "run")
    resumed = Gan(data.spec, generator_every=2)
    progress = fit(resumed, data, TRAIN, tmp_path / "run")
    assert progress.step == 20
    assert resumed.steps["discriminator"] == 7
    for role, module in resumed.roles().items():
        assert (
            weights_digest(module)
            == weights_digest(whole.roles()[role])
            != weights_digest(first.roles()[role])
        )
    lines = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "run")]
    assert [without_time(line) for line in lines[0]] == [without_time(line) for line in lines[1]]


def without_time(line: str) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(line)
    return {name: value for name, value in record.items() if name not in ("seconds", "samples_per_s")}


def test_every_phase_is_recorded(data: DataSplits, fit: Fit, tmp_path: Path) -> None:
    fit(Gan(data.spec), data, TRAIN | {"clip_norm": 5.0}, tmp_path / "run")
    first, *_ = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    names = set(without_time(first))
    assert {"loss_generator", "loss_discriminator", "fooled_discriminator"} <= names
    assert {"grad_norm_generator", "grad_norm_discriminator"} <= names
