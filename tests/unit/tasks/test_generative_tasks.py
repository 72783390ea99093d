"""What is particular to the reconstruction and variational tasks, against closed forms."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.distributions import Bernoulli, Normal, kl_divergence

from fmdist.contracts import DataSpec, Draw, InputSpec, TargetSpec, Task
from fmdist.errors import CapabilityError, DataError
from fmdist.models import autoencoder, conv_vae, vae
from fmdist.stages.modules import Modules
from fmdist.tasks import noise, reconstruction, variational
from fmdist.tasks.decoding import answer, decode, feed, rows
from fmdist.tasks.decoding import noise as rule_noise
from fmdist.tasks.decoding import reconstruction as rule_module
from fmdist.tasks.latent import Latent
from tests.unit.tasks.generative_parts import COLUMNS, PIXELS, SIZE, Rows, arrays, batch, generator, pixels


class TestTrainingNoise:
    def test_a_part_of_the_batch_gets_the_values_of_the_whole(self) -> None:
        index = torch.tensor([7, 0, 123_456_789, 3])
        whole = noise.normal(generator(), 0, index, 5)
        for rows_of_part in ([2], [3, 1]):
            assert torch.equal(noise.normal(generator(), 0, index[rows_of_part], 5), whole[rows_of_part])

    def test_steps_streams_and_samples_differ(self) -> None:
        index = torch.arange(50)
        drawn = [noise.normal(generator(seed), stream, index, 4) for seed in (1, 2) for stream in (0, 1)]
        assert len(torch.unique(torch.cat(drawn))) > 0.999 * 4 * 50 * 4

    @pytest.mark.parametrize("size", [1, 2, 7])
    def test_it_is_standard_normal_and_uncorrelated(self, size: int) -> None:
        drawn = noise.normal(generator(), 0, torch.arange(40_000), size)
        assert drawn.shape == (40_000, size)
        assert drawn.mean(dim=0).abs().max() < 0.025
        torch.testing.assert_close(torch.cov(drawn.T).reshape(size, size), torch.eye(size), atol=0.03, rtol=0)
        inside = (drawn.abs() < 1).double().mean()
        assert inside == pytest.approx(0.6827, abs=0.01)

    def test_neighbours_are_uncorrelated(self) -> None:
        drawn = noise.normal(generator(), 0, torch.arange(40_000), 1)[:, 0]
        assert abs(float((drawn[1:] * drawn[:-1]).mean())) < 0.025

    def test_uniform_covers_its_range(self) -> None:
        drawn = noise.uniform(generator(), 0, torch.arange(10_000), 3)
        assert 0 <= float(drawn.min()) < 0.001
        assert 0.999 < float(drawn.max()) < 1
        assert float(drawn.mean()) == pytest.approx(0.5, abs=0.01)


def test_rule_noise_is_keyed_by_seed_stream_and_index() -> None:
    index = np.array([4, 9])
    whole = rule_noise.normal(3, 1, index, (2, 5))
    assert np.array_equal(rule_noise.normal(3, 1, index[1:], (2, 5)), whole[1:])
    others = [rule_noise.normal(seed, stream, index, (2, 5)) for seed, stream in ((3, 1), (4, 1), (3, 2))]
    assert len(np.unique(others)) == 3 * 2 * 2 * 5


class TestClosedForms:
    mean = torch.randn(6, 4, generator=generator(2), dtype=torch.float64)
    log_variance = torch.randn(6, 4, generator=generator(3), dtype=torch.float64)

    def test_kl_divergence(self) -> None:
        q = Normal(self.mean, (0.5 * self.log_variance).exp())
        wanted = kl_divergence(q, Normal(torch.zeros_like(self.mean), 1.0)).sum(dim=1)
        torch.testing.assert_close(variational.kl_divergence(self.mean, self.log_variance), wanted)
        numbers = rule_module.kl_divergence(self.mean.numpy(), self.log_variance.numpy())
        np.testing.assert_allclose(numbers, wanted.numpy())

    @pytest.mark.parametrize("deviation", [1.0, 0.3])
    def test_gaussian_likelihood(self, deviation: float) -> None:
        law: Any = Normal(self.mean, deviation)
        wanted = law.log_prob(self.log_variance).sum(dim=1)
        rule = {"likelihood": "gaussian", "deviation": deviation}
        found = rule_module.log_likelihood(rule, self.log_variance.numpy(), self.mean.numpy())
        np.testing.assert_allclose(found, wanted.numpy())

    def test_bernoulli_likelihood_is_the_expectation_over_black_and_white(self) -> None:
        logits, grey = torch.tensor([[0.7, -30.0]]), torch.tensor([[0.25, 1.0]])
        law: Any = Bernoulli(logits=logits)
        wanted = (grey * law.log_prob(torch.ones(1, 2)) + (1 - grey) * law.log_prob(torch.zeros(1, 2))).sum()
        found = rule_module.log_likelihood({"likelihood": "bernoulli"}, grey.numpy(), logits.numpy())
        assert found[0] == pytest.approx(float(wanted))

    @pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
    def test_the_training_loss_is_the_rules_bound(self, likelihood: Literal["gaussian", "bernoulli"]) -> None:
        config = variational.Config(likelihood=likelihood, beta=3.0, deviation=0.5)
        task = config.build(PIXELS, Modules(vae.Config(hidden=(8,), latent=2)))
        values = batch()
        out = task.phases()[0].loss(task.roles(), values, generator())
        drawn = noise.normal(generator(), 0, values["index"], 2)
        with torch.no_grad():
            outputs = task.served(task.roles())(values["image"], drawn, torch.ones(SIZE, 1)).numpy()
        flat = values["image"].flatten(1).numpy()
        log_N = rule_module.log_likelihood(task.decoding(), flat, outputs[:, :16])
        kl_N = rule_module.kl_divergence(outputs[:, 16:18], outputs[:, 18:])
        assert out.loss_sum.item() == pytest.approx((3 * kl_N - log_N).sum(), rel=1e-5)
        assert out.count == task.count(values) == SIZE
        assert float(out.logs["kl"]) == pytest.approx(kl_N.sum(), rel=1e-5)


class Linear(nn.Module):
    """p(x|z) = N(z, deviation^2): log p(x) and the posterior are known. ``shift`` spoils the posterior."""

    latent = 1

    def __init__(self, deviation: float, shift: float) -> None:
        super().__init__()
        self.gain = 1 / (1 + deviation**2)
        self.variance = deviation**2 * self.gain
        self.shift = shift

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.gain * x + self.shift, torch.full_like(x, np.log(self.variance))

    def decode(self, code_BZ: Tensor) -> Tensor:
        return code_BZ


class LinearRows:
    """The rows of the rule for `Linear`, with ``samples`` draws."""

    def __init__(self, shift: float, samples: int, deviation: float = 0.5) -> None:
        module = variational.Reparametrized(Linear(deviation, shift))
        self.rule = {
            "rule": "elbo", "inputs": ["features"], "shape": [1], "latent": 1, "samples": samples, "seed": 5,
            "likelihood": "gaussian", "deviation": deviation,
        }  # fmt: skip
        self.calls = 0

        def run(inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
            self.calls += 1
            values = [torch.from_numpy(inputs[name]) for name in ("features", "noise", "posterior")]
            return np.asarray(module(*values).numpy())

        self.x = np.random.default_rng(0).normal(size=(500, 1)).astype(np.float32)
        self.values: dict[str, NDArray[Any]] = {"features": self.x, "index": np.arange(500)}
        self.rows = rows(self.rule, run, self.values, 500)
        law: Any = Normal(0.0, (1 + deviation**2) ** 0.5)
        self.evidence = law.log_prob(torch.from_numpy(self.x))[:, 0].numpy()


class TestBounds:
    def test_with_the_true_posterior_the_bound_is_the_evidence(self) -> None:
        linear = LinearRows(shift=0.0, samples=4)
        np.testing.assert_allclose(linear.rows[:, 2], linear.evidence, atol=2e-5)
        elbo = linear.rows[:, 0] - linear.rows[:, 1]
        assert elbo.mean() == pytest.approx(linear.evidence.mean(), abs=0.05)
        assert linear.calls == 4 + 2

    def test_with_another_posterior_more_draws_tighten_it(self) -> None:
        few, many = LinearRows(shift=0.5, samples=1), LinearRows(shift=0.5, samples=100)
        elbo = (many.rows[:, 0] - many.rows[:, 1]).mean()
        # KL(q || posterior) of two normals of one variance
        gap = 0.5 * 0.5**2 / Linear(0.5, 0.0).variance
        assert elbo == pytest.approx(many.evidence.mean() - gap, abs=0.03)
        assert few.rows[:, 2].mean() < many.rows[:, 2].mean() < many.evidence.mean() + 0.01
        assert many.rows[:, 2].mean() == pytest.approx(many.evidence.mean(), abs=0.03)

    def test_rows_end_in_the_reconstruction_and_a_draw_from_the_prior(self) -> None:
        linear = LinearRows(shift=0.0, samples=1)
        np.testing.assert_allclose(linear.rows[:, 3], linear.x[:, 0] * 0.8, rtol=1e-5)
        assert abs(float(linear.rows[:, 4].mean())) < 0.15
        assert float(linear.rows[:, 4].std()) == pytest.approx(1, abs=0.1)

    def test_calibration_sees_both_sorts_of_codes_and_other_noise(self) -> None:
        linear = LinearRows(shift=0.0, samples=1)
        fed = feed(linear.rule, linear.values)
        assert set(fed) == {"features", "noise", "posterior"}
        assert fed["posterior"].mean() == 0.5
        assert np.isclose(fed["noise"][:, 0], linear.rows[:, 4]).mean() < 0.01

    def test_metrics_and_answers(self) -> None:
        task = variational.Config().build(PIXELS, Modules(vae.Config(hidden=(8,), latent=2)))
        scores = torch.tensor([[-10.0, 2.0, -11.0], [-20.0, 4.0, -21.0]])
        metrics = task.metrics()
        metrics.update(torch.cat([scores, torch.zeros(2, 32)], dim=1), torch.zeros(2))
        found = {name: float(value) for name, value in metrics.compute().items()}
        wanted = {
            "elbo": -18,
            "iw_bound": -16,
            "reconstruction": -15,
            "kl": 3,
            "bits_per_dim": 18 / 16 / np.log(2),
        }
        assert found == pytest.approx(wanted)
        told = decode(task.decoding(), np.pad(scores.numpy(), ((0, 0), (0, 32))))
        assert told[0]["elbo"] == -12
        assert np.shape(told[0]["reconstruction"]) == (1, 4, 4)


def test_a_code_from_the_prior_is_the_noise_itself() -> None:
    model = vae.Config(hidden=(8,), latent=2).build(PIXELS, 0)
    drawn = torch.randn(SIZE, 2, generator=generator())
    outputs = variational.Reparametrized(model)(batch()["image"], drawn, torch.zeros(SIZE, 1))
    torch.testing.assert_close(outputs[:, :16], model.decode(drawn).flatten(1))


def test_bernoulli_baseline_knows_each_pixels_share() -> None:
    train = np.zeros((8, 1, 4, 4), np.float32)
    train[:4, 0, 0, 0] = 1
    task = variational.Config(likelihood="bernoulli").build(PIXELS, Modules(vae.Config(hidden=(8,))))
    found = task.baseline(Rows(train), Rows(train[:1]))
    never = np.log(1 - 1 / 10)
    assert found[0, 0] == pytest.approx(np.log(0.5) + 15 * never, rel=1e-5)
    assert found[0, 1] == 0
    assert found.shape == (1, 3 + 2 * 16)


class TestReconstruction:
    def task(self, noise_size: float = 0.0) -> Task:
        config = reconstruction.Config(noise=noise_size)
        return config.build(COLUMNS, Modules(autoencoder.Config(hidden=(), latent=2)))

    def values(self) -> Rows:
        return Rows(np.random.default_rng(1).normal(size=(SIZE, 3)).astype(np.float32), "features")

    def test_loss_rows_and_metrics_agree(self) -> None:
        task, values = self.task(), self.values().__getitems__(Draw(0, np.arange(SIZE)))

        def run(inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
            with torch.no_grad():
                return np.asarray(task.served(task.roles())(torch.from_numpy(inputs["features"])).numpy())

        scored = rows(task.decoding(), run, arrays(values))
        loss = task.phases()[0].loss(task.roles(), values, generator())
        metrics = task.metrics()
        metrics.update(torch.from_numpy(scored), values["target"])
        found = metrics.compute()
        difference = run(arrays(values)) - values["features"].numpy()
        assert float(found["mse"]) == pytest.approx((difference**2).mean(), rel=1e-5)
        assert float(found["mae"]) == pytest.approx(np.abs(difference).mean(), rel=1e-5)
        assert loss.loss_sum.item() / loss.count == pytest.approx(float(found["mse"]), rel=1e-5)
        np.testing.assert_array_equal(scored[:, 2:], run(arrays(values)))
        told = answer(task.decoding(), run, arrays(values))
        assert json.loads(json.dumps(told))[0]["mse"] == pytest.approx(scored[0, 0])

    def test_noise_is_added_to_the_input_alone(self) -> None:
        values = self.values().__getitems__(Draw(0, np.arange(SIZE)))
        noisy, plain = self.task(0.5), self.task()
        model = noisy.roles()["model"]
        added = values | {
            "features": values["features"] + 0.5 * noise.normal(generator(), 0, values["index"], 3)
        }
        wanted = (model(added["features"]) - values["features"]).square().mean(dim=1).sum()
        found = noisy.phases()[0].loss(noisy.roles(), values, generator()).loss_sum
        torch.testing.assert_close(found, wanted)
        assert found != plain.phases()[0].loss({"model": model}, values, generator()).loss_sum

    def test_baseline_is_the_training_mean(self) -> None:
        train, part = self.values(), Rows(np.zeros((2, 3), np.float32), "features")
        found = self.task().baseline(train, part)
        mean = train.values.mean(axis=0)
        np.testing.assert_allclose(found[:, 2:], np.tile(mean, (2, 1)), atol=1e-6)
        np.testing.assert_allclose(found[:, 0], (mean**2).mean(), rtol=1e-5)


class TestRefusals:
    @pytest.mark.parametrize("task", [reconstruction.Config(), variational.Config()])
    def test_tokens(self, task: Any) -> None:
        text = DataSpec((InputSpec("tokens", (None,), "int64", 9, 4),), TargetSpec("class", ("a", "b")), 2)
        with pytest.raises(CapabilityError, match="images or the numbers"):
            task.build(text, Modules(vae.Config()))

    def test_normalized_pixels_under_the_bernoulli_likelihood(self) -> None:
        config = variational.Config(likelihood="bernoulli")
        task = config.build(PIXELS, Modules(vae.Config(hidden=(8,), latent=2)))
        values = batch() | {"image": batch()["image"] - 0.5}
        with pytest.raises(DataError, match=r"\[-0\.\d+, 0\.\d+\].*normalize: false"):
            task.phases()[0].loss(task.roles(), values, generator())


def test_an_artifact_is_scored_without_its_models_code() -> None:
    for config, name in ((variational.Config(), "elbo"), (reconstruction.Config(), "mse")):
        task: Any = config.build(PIXELS, Modules(None))
        found = task.baseline(Rows(pixels(20)), Rows(pixels(5)))
        metrics = task.metrics()
        metrics.update(torch.from_numpy(found), torch.zeros(5))
        assert torch.isfinite(metrics.compute()[name])


def test_forms_say_what_tasks_rely_on() -> None:
    for model in (vae.Config(), conv_vae.Config(), autoencoder.Config()):
        module: Any = model.build(PIXELS, 0)
        latent: Latent = module
        code = latent.encode(torch.zeros(2, 1, 4, 4))
        assert isinstance(code, tuple) == (model.form == "variational")
        assert latent.decode(torch.zeros(2, latent.latent)).shape == (2, 1, 4, 4)
