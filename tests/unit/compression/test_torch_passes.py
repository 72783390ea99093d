"""What each pass on the torch model does to the weights, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fmdist.compression.config import CompressConfig
from fmdist.compression.finetune import finetune, keeping_zeros
from fmdist.compression.finetune_config import FinetuneConfig
from fmdist.compression.passes import low_rank, prune_weights
from fmdist.errors import CapabilityError
from fmdist.training.checkpoint import weights_digest
from tests.unit.compression.benches import SPLITS, bench


def net() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 16),
        nn.Linear(16, 10),
    )


def zeros(value: Tensor) -> float:
    return float((value == 0).float().mean())


class TestPruneWeights:
    def test_the_share_is_met_over_all_layers_together(self) -> None:
        module = net()
        outcome = prune_weights.Config(sparsity=0.9, schedule="one_shot").reduce(bench(module))
        matrices = [value for value in module.parameters() if value.ndim >= 2]
        assert zeros(torch.cat([value.flatten() for value in matrices])) == pytest.approx(0.9, abs=1e-3)
        # The largest layer has the smallest weights.
        assert zeros(matrices[1]) > 0.9 > zeros(matrices[0])
        covered = outcome.coverage
        assert covered["changed_layers"] + len(covered["left"]) == covered["layers"] == 3
        assert covered["changed_parameters"] == sum(int((value == 0).sum()) for value in matrices)

    def test_the_largest_stay(self) -> None:
        module = net()
        before = module[4].weight.detach().clone()
        prune_weights.Config(sparsity=0.75, scope="local", schedule="one_shot").reduce(bench(module))
        kept = module[4].weight != 0
        assert torch.equal(module[4].weight[kept], before[kept])
        assert before[kept].abs().min() > before[~kept].abs().max()
        assert [zeros(module[at].weight) for at in (0, 4, 5)] == pytest.approx([0.75] * 3, abs=0.01)

    @pytest.mark.parametrize(
        ("schedule", "shares"),
        [
            ("cubic", [0.8 * (1 - (1 - part) ** 3) for part in (0.25, 0.5, 0.75, 1)]),
            ("exponential", [1 - 0.2**0.25, 1 - 0.2**0.5, 1 - 0.2**0.75, 0.8]),
            ("multi_step", [0.2, 0.4, 0.6, 0.8]),
            ("one_shot", [0.8]),
        ],
    )
    def test_the_schedules_end_at_the_share(self, schedule: Any, shares: list[float]) -> None:
        config = prune_weights.Config(sparsity=0.8, schedule=schedule)
        found = config._shares()
        assert found[-1] == pytest.approx(0.8)
        assert found == sorted(found)
        assert found == pytest.approx(shares)

    def test_training_follows_every_round(self) -> None:
        module = net()
        trained: list[tuple[str, float]] = []

        def train(config: FinetuneConfig, name: str) -> None:
            trained.append((name, zeros(module[4].weight)))

        outcome = prune_weights.Config(sparsity=0.8, rounds=3, scope="local").reduce(
            bench(module, train=train)
        )
        assert [name for name, _ in trained] == ["round-1", "round-2", "round-3"]
        assert [share for _, share in trained] == pytest.approx([0.563, 0.770, 0.8], abs=0.002)
        assert [row["nonzero"] for row in outcome.candidates] == sorted(
            (row["nonzero"] for row in outcome.candidates), reverse=True
        )

    def test_a_pattern_holds_in_every_group(self) -> None:
        module = net()
        before = module[4].weight.detach().clone()
        outcome = prune_weights.Config(pattern="2:4").reduce(bench(module))
        groups = module[4].weight.detach().reshape(-1, 4)
        assert ((groups != 0).sum(dim=1) == 2).all()
        kept, gone = (before.reshape(-1, 4).abs() * mask for mask in (groups != 0, groups == 0))
        assert (kept.max(dim=1).values >= gone.max(dim=1).values).all()
        (left,) = outcome.coverage["left"]
        assert (left["name"], left["reason"]) == ("0", "its 1 inputs are no multiple of 4")

    def test_recurrent_weights_are_covered(self) -> None:
        module: Any = nn.Sequential(nn.Flatten(2), Last(nn.LSTM(64, 8, batch_first=True)), nn.Linear(8, 10))
        prune_weights.Config(sparsity=0.5, scope="local", schedule="one_shot").reduce(bench(module))
        lstm = module[1].layer
        assert zeros(lstm.weight_ih_l0) == zeros(lstm.weight_hh_l0) == 0.5

    def test_statistics_follow_the_weights(self) -> None:
        module = net()
        prune_weights.Config(sparsity=0.5, schedule="one_shot").reduce(bench(module))
        assert module[1].running_mean.abs().sum() > 0
        assert module[1].momentum == 0.1
        assert not any(part.training for part in module.modules())

    @pytest.mark.parametrize("pattern", ["4:2", "0:4", "2", "2:4:8", "2:2"])
    def test_what_is_no_pattern(self, pattern: str) -> None:
        with pytest.raises(ValidationError, match="no N:M with N below M"):
            prune_weights.Config(pattern=pattern)

    def test_ignored_layers_stay_and_unknown_ones_are_named(self) -> None:
        module = net()
        outcome = prune_weights.Config(sparsity=0.5, ignore=("5", "0"), schedule="one_shot").reduce(
            bench(module)
        )
        assert zeros(module[5].weight) == 0
        assert {left["reason"] for left in outcome.coverage["left"]} == {"ignored by the recipe"}
        with pytest.raises(CapabilityError, match="no layer has this name, got 'head'; allowed: 0, 4, 5"):
            prune_weights.Config(ignore=("head",)).reduce(bench(net()))
        with pytest.raises(CapabilityError, match="there is no layer that it may prune"):
            prune_weights.Config(ignore=("*",)).reduce(bench(net()))


class Last(nn.Module):
    """A recurrent layer's last state."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x_BTD: Tensor) -> Tensor:
        states_BTD: Tensor = self.layer(x_BTD)[0]
        return states_BTD[:, -1]


def test_zeros_stay_under_any_optimizer() -> None:
    module = net()
    prune_weights.Config(sparsity=0.8, schedule="one_shot").reduce(bench(module))
    before = [value == 0 for value in module.parameters() if value.ndim >= 2]
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1)
    again = keeping_zeros(module.parameters())
    optimizer.register_step_post_hook(lambda *_: again())
    for _ in range(3):
        optimizer.zero_grad()
        torch.autograd.backward(module(torch.randn(4, 1, 8, 8)).square().sum())
        optimizer.step()
    after = [value == 0 for value in module.parameters() if value.ndim >= 2]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_a_teacher_is_left_as_it_was(tmp_path: Path) -> None:
    original, task = (bench(net()).task for _ in range(2))
    config = FinetuneConfig.model_validate({"epochs": 1, "distill": {}})
    recipe = {"name": "student", "train": {"batch_size": 256, "threads": 1}}
    finetune(task, original, SPLITS, config, recipe, tmp_path / "training")
    (taught,) = original.roles().values()
    assert all(value.requires_grad for value in taught.parameters())
    assert weights_digest(taught) == weights_digest(net())
    (learned,) = task.roles().values()
    assert weights_digest(learned) != weights_digest(net())


class TestLowRank:
    @pytest.mark.parametrize("method", ["svd", "randomized", "qr"])
    def test_a_layer_of_low_rank_computes_the_same(self, method: Any) -> None:
        torch.manual_seed(0)
        module: Any = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
        with torch.no_grad():
            module[1].weight.copy_(torch.randn(48, 5) @ torch.randn(5, 64))
        x = torch.randn(7, 1, 8, 8)
        expected = module(x).detach()
        config = low_rank.Config(method=method, energy=0.999999, ignore=("3",))
        outcome = config.reduce(bench(module))
        assert outcome.replaced == [{"module": "1", "rank": 5}]
        torch.testing.assert_close(module(x), expected, rtol=1e-3, atol=1e-3)
        covered = outcome.coverage
        assert covered["changed_parameters"] == 64 * 48 - 5 * (64 + 48)

    def test_a_convolution_of_low_rank_computes_the_same(self) -> None:
        torch.manual_seed(0)
        module: Any = nn.Sequential(
            nn.Conv2d(1, 4, 1), nn.Conv2d(4, 16, 3, stride=2, padding=1), nn.Flatten()
        )
        with torch.no_grad():
            module[1].weight.copy_((torch.randn(16, 2) @ torch.randn(2, 36)).reshape(16, 4, 3, 3))
        x = torch.randn(3, 1, 8, 8)
        expected = module(x).detach()
        outcome = low_rank.Config(energy=0.999999).reduce(bench(module))
        assert outcome.replaced == [{"module": "1", "rank": 2}]
        torch.testing.assert_close(module(x), expected, rtol=1e-3, atol=1e-3)
        (left,) = outcome.coverage["left"]
        assert left["reason"] == "at its rank of 1 two layers would be no smaller"

    def test_the_energy_is_what_stays(self) -> None:
        torch.manual_seed(0)
        module: Any = nn.Sequential(nn.Flatten(), nn.Linear(64, 64))
        weight = module[1].weight.detach().clone()
        low_rank.Config(energy=0.5).reduce(bench(module))
        product = (module[1][1].weight @ module[1][0].weight).detach()
        share = 1 - float(((weight - product) ** 2).sum() / (weight**2).sum())
        assert 0.5 <= share < 0.55

    def test_what_can_not_be_factored_is_left_with_the_reason(self) -> None:
        class Odd(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.grouped = nn.Conv2d(4, 8, 3, groups=4)
                self.attention = nn.MultiheadAttention(16, 2)
                self.first, self.second = nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False)
                self.second.weight = self.first.weight
                self.table = nn.Embedding(5, 4)

        outcome = low_rank.Config(ratio=0.1).reduce(bench(Odd()))
        reasons = {left["name"]: left["reason"] for left in outcome.coverage["left"]}
        assert reasons == {
            "grouped": "a grouped convolution is small already",
            "attention": "MultiheadAttention can't be made into two layers",
            "attention.out_proj": "NonDynamicallyQuantizableLinear can't be made into two layers",
            "first": "it shares its weights with another layer",
            "second": "it shares its weights with another layer",
            "table": "Embedding can't be made into two layers",
        }
        assert not outcome.replaced


@pytest.mark.parametrize(
    ("passes", "said"),
    [
        ([{"kind": "quantize"}, {"kind": "prune_channels"}], "prune_channels must stand before quantize"),
        ([{"kind": "prune_weights"}, {"kind": "low_rank"}], "low_rank must stand before prune_weights"),
        ([{"kind": "prune_channels", "ratio": 0.5, "flops": 0.5}], "give ratio or flops, not both"),
        ([{"kind": "prune_channels", "latency": 0.5, "flops": 0.5}], "give flops or latency, not both"),
        ([{"kind": "low_rank", "ratio": 0.5, "energy": 0.5}], "give energy or ratio, not both"),
        (
            [{"kind": "prune_weights", "pattern": "2:4", "sparsity": 0.5}],
            "give sparsity or pattern, not both",
        ),
    ],
)
def test_passes_that_do_not_go_together(passes: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        CompressConfig.model_validate({"passes": tuple(passes)})
