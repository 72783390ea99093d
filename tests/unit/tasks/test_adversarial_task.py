"""What is particular to the adversarial task, against closed forms and plain backpropagation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from fmdist.errors import CapabilityError, CheckpointError, DataError
from fmdist.models import gan
from fmdist.stages.modules import Modules
from fmdist.tasks import adversarial, noise
from fmdist.tasks.decoding import answer, feed, rows
from fmdist.tasks.decoding import noise as rule_noise
from fmdist.tasks.frechet import Classes, FrechetDistance, Judge, frechet_distance
from tests.unit.tasks.generative_parts import COLUMNS, PIXELS, SIZE, Rows, arrays, batch, generator, pixels

SMALL_GAN = gan.Config(channels=(8, 8), latent=3)


class Slope(nn.Module):
    """A discriminator: the sum of an image's pixels, times a weight."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, image: Tensor) -> Tensor:
        return self.weight * image.flatten(1).sum(dim=1, keepdim=True)


def adversaries(
    weight: float = 0.5, loss: Literal["non_saturating", "hinge", "wgan_gp"] = "non_saturating"
) -> adversarial.Adversarial:
    torch.manual_seed(0)
    built = SMALL_GAN.build(PIXELS, 0)
    built["discriminator"] = Slope(weight)
    return adversarial.Adversarial(adversarial.Config(loss=loss), PIXELS, built, None)


class TestAdversarial:
    def scores(self, task: adversarial.Adversarial, stream: int) -> tuple[Tensor, Tensor]:
        """Return the discriminator's scores of a batch and of what the generator makes for it."""
        roles = task.roles()
        drawn = noise.normal(generator(), stream, batch()["index"], 3)
        return roles["discriminator"](batch()["image"]), roles["discriminator"](roles["generator"](drawn))

    def test_discriminator_losses(self) -> None:
        task = adversaries(loss="non_saturating")
        real, fake = self.scores(task, 0)
        wanted = -functional.logsigmoid(real).sum() - functional.logsigmoid(-fake).sum()
        out = task.phases()[0].loss(task.roles(), batch(), generator())
        torch.testing.assert_close(out.loss_sum, wanted)
        assert out.count == task.count(batch()) == SIZE
        task = adversaries(loss="hinge")
        wanted = (1 - real).clamp(min=0).sum() + (1 + fake).clamp(min=0).sum()
        torch.testing.assert_close(task.phases()[0].loss(task.roles(), batch(), generator()).loss_sum, wanted)

    @pytest.mark.parametrize("weight", [0.5, -2.0])
    def test_the_penalty_of_a_linear_critic_is_known(self, weight: float) -> None:
        task = adversaries(weight, "wgan_gp")
        real, fake = self.scores(task, 0)
        # The gradient's norm is |weight| * sqrt(16).
        wanted = (fake - real).sum() + SIZE * 10 * (abs(weight) * 4 - 1) ** 2
        loss = task.phases()[0].loss(task.roles(), batch(), generator()).loss_sum
        torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-4)
        torch.autograd.backward(loss)
        slope = task.roles()["discriminator"].get_parameter("weight").grad
        assert slope is not None
        sums = (fake - real).sum().item() / weight
        by_hand = sums + SIZE * 10 * 2 * (abs(weight) * 4 - 1) * 4 * np.sign(weight)
        assert float(slope) == pytest.approx(by_hand, rel=1e-4)

    @pytest.mark.parametrize("loss", ["non_saturating", "hinge", "wgan_gp"])
    def test_the_generators_gradient_is_that_of_plain_backpropagation(
        self, loss: Literal["non_saturating", "hinge", "wgan_gp"]
    ) -> None:
        task = adversaries(loss=loss)
        _, fake = self.scores(task, 1)
        wanted = functional.softplus(-fake).sum() if loss == "non_saturating" else -fake.sum()
        parameters = list(task.roles()["generator"].parameters())
        plain = torch.autograd.grad(wanted, parameters)
        phase = task.phases()[1]
        out = phase.loss(task.roles(), batch(), generator())
        torch.testing.assert_close(out.loss_sum, wanted)
        torch.autograd.backward(out.loss_sum)
        for parameter, gradient in zip(parameters, plain, strict=True):
            assert parameter.grad is not None
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
        assert all(p.grad is None for p in task.roles()["discriminator"].parameters())

    def test_each_engine_runs_once_per_backward(self) -> None:
        task = adversaries(loss="wgan_gp")
        calls = []
        for role, module in task.roles().items():
            module.register_forward_hook(lambda *_, role=role: calls.append((role, torch.is_grad_enabled())))
        task.phases()[0].loss(task.roles(), batch(), generator())
        assert calls == [("generator", False), ("discriminator", True)]
        wrapped = {**task.roles(), "discriminator": nn.Identity()}
        calls.clear()
        task.phases()[1].loss(wrapped, batch(), generator())
        assert calls == [("generator", True), ("discriminator", True)]

    def test_the_critic_may_step_more_often(self) -> None:
        config = adversarial.Config(critic_steps=5)
        phases = config.build(PIXELS, Modules(SMALL_GAN)).phases()
        assert [(phase.role, phase.every) for phase in phases] == [("discriminator", 1), ("generator", 5)]

    def test_rows_hold_draws_and_the_real_image(self) -> None:
        config = adversarial.Config(draws=2, seed=7)
        task = config.build(PIXELS, Modules(SMALL_GAN))
        served = task.served(task.roles()).eval()

        def run(inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
            with torch.no_grad():
                return np.asarray(served(torch.from_numpy(inputs["noise"])).numpy())

        values = arrays(batch())
        found = rows(task.decoding(), run, values)
        drawn = rule_noise.normal(7, 0, values["index"], (2, 3))
        np.testing.assert_allclose(found[:, 16:32], run({"noise": drawn[:, 1].copy()}).reshape(SIZE, 16))
        np.testing.assert_array_equal(found[:, 32:], values["image"].reshape(SIZE, 16))
        first = answer(task.decoding(), run, {"index": values["index"]})
        np.testing.assert_array_equal(np.array(first[1]["image"]).ravel(), found[1, :16])
        other = answer(task.decoding(), run, {"index": values["index"]}, {"seed": 8})
        assert other != first
        assert not np.isin(feed(task.decoding(), values)["noise"], drawn).any()

    def test_baseline_has_the_training_pixels_moments(self) -> None:
        task = adversarial.Config(draws=3).build(PIXELS, Modules(SMALL_GAN))
        train = np.clip(pixels(400) * 0.2 + np.linspace(0, 0.8, 16, dtype=np.float32).reshape(1, 4, 4), 0, 1)
        found = task.baseline(Rows(train), Rows(train[:200]))
        drawn = found[:, :48].reshape(600, 16)
        np.testing.assert_allclose(drawn.mean(axis=0), train.reshape(400, 16).mean(axis=0), atol=0.02)
        np.testing.assert_array_equal(found[:, 48:], train[:200].reshape(200, 16))
        assert drawn.min() >= train.min()


class TestMoves:
    def test_images_move_down_and_right_and_repeat_their_border(self) -> None:
        image = torch.arange(9.0).reshape(1, 1, 3, 3).expand(3, 2, 3, 3)
        found = adversarial.moved(image, torch.tensor([[0, 0], [1, 0], [0, -2]]))
        assert torch.equal(found[0], image[0])
        assert found[1, 1].tolist() == [[0, 1, 2], [0, 1, 2], [3, 4, 5]]
        assert found[2, 0].tolist() == [[2, 2, 2], [5, 5, 5], [8, 8, 8]]

    def test_real_and_generated_images_are_moved_by_amounts_of_their_own(self) -> None:
        torch.manual_seed(0)
        seen: list[Tensor] = []
        built = SMALL_GAN.build(PIXELS, 0)
        task = adversarial.Adversarial(adversarial.Config(shift=2), PIXELS, built, None)
        built["discriminator"].register_forward_hook(lambda module, images, scores: seen.append(images[0]))
        task.phases()[0].loss(task.roles(), batch(), generator())
        task.phases()[1].loss(task.roles(), batch(), generator())
        assert [len(images) for images in seen] == [2 * SIZE, SIZE]
        real = batch()["image"]
        places = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
        found = set()
        for image, original in zip(seen[0], real, strict=False):
            fits = [
                place
                for place in places
                if torch.equal(adversarial.moved(original[None], torch.tensor([place]))[0], image)
            ]
            assert fits
            found.add(fits[0])
        assert len(found) > SIZE // 3


class TestFrechetDistance:
    def test_of_diagonal_covariances(self) -> None:
        a, b = torch.tensor([1.0, 4.0]), torch.tensor([9.0, 0.25])
        mean = torch.tensor([3.0, 0.0])
        wanted = 9 + float(((a.sqrt() - b.sqrt()) ** 2).sum())
        found = frechet_distance(mean, a.diag(), torch.zeros(2), b.diag())
        assert float(found) == pytest.approx(wanted, rel=1e-5)

    def test_against_the_matrix_root(self) -> None:
        random = np.random.default_rng(0)
        one, two = (np.cov(random.normal(size=(5, 9)) * 3) for _ in range(2))
        # The root's eigenvalues are the roots of the product's.
        wanted = np.trace(one + two) - 2 * np.sqrt(np.linalg.eigvals(one @ two)).sum().real
        zero = torch.zeros(5, dtype=torch.float64)
        found = frechet_distance(zero, torch.from_numpy(one), zero, torch.from_numpy(two))
        assert float(found) == pytest.approx(float(wanted), rel=1e-8)

    def test_the_metric_estimates_it_from_any_batches(self) -> None:
        random = torch.randn(60, 8, generator=generator())
        whole, parts, other = (FrechetDistance(lambda x: x, 2, 3) for _ in range(3))
        whole.update(random, random)
        for part in torch.split(random[:40], 7):
            parts.update(part, part)
        other.update(random[40:], random[40:])
        parts.merge_state(other)
        assert float(parts.compute()) == pytest.approx(float(whole.compute()), rel=1e-9)
        generated, real = random[:, :6].reshape(-1, 2).double(), random[:, 6:].double()
        wanted = frechet_distance(generated.mean(0), generated.T.cov(), real.mean(0), real.T.cov())
        assert float(whole.compute()) == pytest.approx(float(wanted), rel=1e-9)

    def test_equal_images_have_none(self) -> None:
        half = torch.randn(50, 3, generator=generator())
        metric = FrechetDistance(lambda x: x, 3, 1)
        metric.update(torch.cat([half, half], dim=1), half)
        assert abs(float(metric.compute())) < 1e-9


class TestJudge:
    def judge(self) -> Judge:
        classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)
        )
        return Judge(classifier, (0.5,), (0.25,))

    def test_features_are_what_the_last_linear_layer_reads(self) -> None:
        judge = self.judge()
        image = batch()["image"]
        features, logits = judge(image)
        whole = nn.Sequential(*list(judge.classifier.children())[:-1])
        with torch.no_grad():
            torch.testing.assert_close(features, whole((image - 0.5) / 0.25))
            torch.testing.assert_close(logits, judge.classifier((image - 0.5) / 0.25))

    def test_it_stays_as_it_is(self) -> None:
        judge = self.judge()
        before = judge(batch()["image"])[1]
        nn.ModuleList([judge]).train()
        assert not any(module.training for module in judge.modules())
        assert not any(parameter.requires_grad for parameter in judge.parameters())
        assert torch.equal(judge(batch()["image"])[1], before)

    def test_metrics_of_a_judged_task(self) -> None:
        # A pixel brighter than another names the class.
        classifier = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False))
        with torch.no_grad():
            classifier.get_parameter("1.weight").copy_(torch.eye(2, 16))
        judge = Judge(classifier, (0.0,), (1.0,))
        task = adversarial.Adversarial(adversarial.Config(), PIXELS, SMALL_GAN.build(PIXELS, 0), judge)
        assert set(task.roles()) == {"generator", "discriminator", "judge"}
        assert {phase.role for phase in task.phases()} == {"generator", "discriminator"}
        scored = torch.zeros(2, 32)
        scored[0, 0], scored[1, 0] = 1.0, 3.0
        metrics = task.metrics()
        metrics.update(scored, torch.zeros(2))
        found = metrics.compute()
        wanted = torch.tensor([1.0, 3.0]).sigmoid().mean()
        assert float(found["confidence"]) == pytest.approx(float(wanted))
        assert float(found["classes"]) == 1
        scored[1, 0] = -3.0
        metrics.update(scored, torch.zeros(2))
        assert float(metrics.compute()["classes"]) == 2

    def test_classes_are_counted_over_batches_and_ranks(self) -> None:
        one, two = (Classes(lambda x: x, 3, 1) for _ in range(2))
        one.update(torch.tensor([[0.0, 9, 0, 9, 9, 9]]), torch.zeros(1))
        two.update(torch.tensor([[0.0, 0, 9, 9, 9, 9]]), torch.zeros(1))
        one.merge_state(two)
        assert float(one.compute()) == 2

    def test_without_a_linear_layer_it_is_refused(self) -> None:
        with pytest.raises(CapabilityError, match="no linear layer"):
            Judge(nn.Flatten(), (0.0,), (1.0,))


class TestRefusals:
    def test_a_gan_of_tables(self) -> None:
        with pytest.raises(CapabilityError, match="variational"):
            adversarial.Config().build(COLUMNS, Modules(SMALL_GAN))

    def test_normalized_pixels_under_a_sigmoid(self) -> None:
        bounded = gan.Config(channels=(8, 8), latent=3, output="sigmoid")
        task = adversarial.Config().build(PIXELS, Modules(bounded))
        values = batch() | {"image": 2 * batch()["image"]}
        with pytest.raises(DataError, match="normalize: false"):
            task.phases()[0].loss(task.roles(), values, generator())

    def test_a_judge_that_is_not_there(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"task\.judge.*no such run.*relative to the working"):
            adversarial.Config(judge=tmp_path / "none").build(PIXELS, Modules(SMALL_GAN))

    @pytest.mark.parametrize(
        ("shape", "rule"), [([1, 8, 8], "class"), ([1, 4, 4], "labels"), ([1, 4, 4], "value")]
    )
    def test_a_judge_of_something_else(self, shape: list[int], rule: str, tmp_path: Path) -> None:
        signature = {
            "preprocessing": {"kind": "image", "shape": shape, "mean": [0.0], "std": [1.0]},
            "decoding": {"rule": rule},
        }
        (tmp_path / "signature.json").write_text(json.dumps(signature))

        @dataclass(frozen=True)
        class Builder(Modules):
            def trained(self, run: Path) -> nn.Module:
                return nn.Linear(1, 1)

        with pytest.raises(CapabilityError, match="judge must be a classifier"):
            adversarial.Config(judge=tmp_path).build(PIXELS, Builder(SMALL_GAN))


def test_an_artifact_is_scored_without_its_models_code() -> None:
    judged = adversarial.Config().build(PIXELS, Modules(None))
    found = judged.baseline(Rows(pixels(20)), Rows(pixels(5)))
    metrics = judged.metrics()
    metrics.update(torch.from_numpy(found), torch.zeros(5))
    assert torch.isfinite(metrics.compute()["frechet_distance"])
