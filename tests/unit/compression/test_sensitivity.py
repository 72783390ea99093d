"""What changing one layer costs is measured, on a model that is the same afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fmdist import storage
from fmdist.compression import sensitivity
from fmdist.compression.allocation import BROKEN, Curve, added, curve_of, in_multiples, share_out
from fmdist.compression.passes import prune_channels, prune_weights
from fmdist.compression.sensitivity_config import SensitivityConfig
from fmdist.reports.sensitivity import page, write
from fmdist.tasks import classification
from tests.unit.compression.benches import SPLITS, Given, bench

FEW = SensitivityConfig(samples=60)


def net(width: int = 32) -> Any:
    torch.manual_seed(0)
    module: Any = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(width * 64, 10),
    )
    # Half of the second layer's channels hardly count, whichever of its weights they take.
    with torch.no_grad():
        module[3].weight[width // 2 :] *= 1e-4
        module[3].bias[width // 2 :] = 0
    return module


def model(module: nn.Module) -> sensitivity.Model:
    task = classification.Config().build(SPLITS.spec, Given(module.eval()))
    return sensitivity.Model(task, (torch.randn(2, 1, 8, 8),), SPLITS, seed=0)


class TestMeasure:
    def test_every_layer_is_measured_and_left_as_it_was(self) -> None:
        module = net()
        before = {name: value.clone() for name, value in module.state_dict().items()}
        record = sensitivity.measure(model(module), FEW)
        assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
        rows = {row["name"]: row for row in record["layers"]}
        assert rows.keys() == {"0", "3", "6"}
        assert record["samples"] == 60
        assert 0 <= record["value"] <= 1
        for row in rows.values():
            assert [point["share"] for point in row["weights"]] == [0.5, 0.8, 0.95]
            errors = [point["error"] for point in row["weights"]]
            assert errors == sorted(errors)
            assert errors[0] > 0
            assert row["error"] == pytest.approx(sum(errors) / 3)
            eight, four = row["bits"]
            assert 0 < eight["error"] < 0.02 < four["error"]
            for point in row["weights"]:
                assert point["drop"] == pytest.approx(record["value"] - point["value"])
        assert rows["6"]["channels"] == []  # they are the model's outputs
        half, three_quarters = rows["3"]["channels"][1:]
        assert half["error"] < 1e-3 < three_quarters["error"]
        drops = [round(row["drop"], 9) for row in record["layers"]]
        assert drops == sorted(drops, reverse=True)

    def test_a_channel_goes_with_its_batchnorm(self) -> None:
        module = net()
        with torch.no_grad():
            module[1].bias.fill_(5.0)
        norms = sensitivity._norms_after(module, (torch.randn(2, 1, 8, 8),))
        assert norms == {"0": module[1]}
        with torch.no_grad():
            sensitivity._zero_channels(module[0], norms["0"], 0.25)
            features = module[:3](torch.randn(3, 1, 8, 8))
        gone = features.abs().amax(dim=(0, 2, 3)) == 0
        assert int(gone.sum()) == 8
        weights = module[0].weight.flatten(1)
        assert torch.equal(gone, weights.abs().amax(dim=1) == 0)

    @pytest.mark.parametrize("bits", [4, 8])
    @pytest.mark.parametrize("layer", [nn.Linear(7, 5), nn.ConvTranspose2d(3, 5, 2), nn.Embedding(6, 4)])
    def test_rounding_is_to_the_nearest_level_of_a_channel(self, layer: Any, bits: int) -> None:
        with torch.no_grad():
            layer.weight[0] *= 100
            before = layer.weight.clone()
            sensitivity._round(layer, bits)
        axis = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
        old, new = (value.movedim(axis, 0).flatten(1) for value in (before, layer.weight.detach()))
        step = old.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
        assert ((new - old).abs() <= step / 2 + 1e-6).all()
        torch.testing.assert_close(new / step, (new / step).round(), rtol=0, atol=1e-3)

    def test_outputs_that_are_no_longer_finite_are_told(self) -> None:
        class Divides(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layer, self.head = nn.Linear(64, 4), nn.Linear(4, 10)

            def forward(self, x_BCHW: Tensor) -> Tensor:
                y_BF: Tensor = self.head(self.layer(x_BCHW.flatten(1)))
                return y_BF / self.layer.weight.abs().amin(dim=1).prod()

        torch.manual_seed(0)
        record = sensitivity.measure(model(Divides()), FEW)
        first = record["layers"][0]
        assert first["name"] == "layer"
        assert (first["drop"], first["error"]) == (None, None)
        assert {point["value"] for point in first["weights"]} == {None}
        assert curve_of(first["weights"], 1, record["value"]).costs == (BROKEN,) * 3

    def test_shared_weights_are_measured_once(self) -> None:
        module = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10))
        module[2].weight = module[1].weight
        record = sensitivity.measure(model(module), FEW)
        assert {row["name"] for row in record["layers"]} == {"1", "3"}


def test_the_record_is_used_again_until_something_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, file = net(), tmp_path / "sensitivity" / "sensitivity.json"
    measured: list[int] = []
    measure = sensitivity.measure

    def counted(*given: Any) -> dict[str, Any]:
        measured.append(1)
        return measure(*given)

    monkeypatch.setattr(sensitivity, "measure", counted)
    first = sensitivity.recorded(model(module), FEW, file)
    assert sensitivity.recorded(model(module), FEW, file) == first == storage.read_json(file)
    assert len(measured) == 1
    sensitivity.recorded(model(module), SensitivityConfig(samples=61), file)
    assert len(measured) == 2
    with torch.no_grad():
        module[6].bias += 1
    sensitivity.recorded(model(module), SensitivityConfig(samples=61), file)
    assert len(measured) == 3
    file.write_text(file.read_text()[:-20])
    sensitivity.recorded(model(module), SensitivityConfig(samples=61), file)
    assert len(measured) == 4


class TestSharing:
    CURVES = {  # noqa: RUF012
        "large": Curve(900, (0.5, 0.8), (0.1, 0.4)),
        "small": Curve(100, (0.5, 0.8), (0.6, 0.9)),
        "dead": Curve(50, (0.5, 0.8), (0.0, 0.0)),
    }

    @pytest.mark.parametrize("total", [0.1, 0.5, 0.8, 0.95])
    def test_the_total_is_what_was_asked_and_goes_where_it_costs_least(self, total: float) -> None:
        shares = share_out(self.CURVES, total, 0.99)
        removed = sum(self.CURVES[name].size * share for name, share in shares.items())
        assert removed / 1050 == pytest.approx(total, abs=1e-6)
        assert 0 <= shares["small"] < shares["large"] <= shares["dead"] <= 0.99

    def test_all_go_to_the_most_if_that_is_asked(self) -> None:
        assert share_out(self.CURVES, 0.9, 0.9) == pytest.approx(dict.fromkeys(self.CURVES, 0.9), abs=1e-6)

    def test_a_curve_that_falls_is_its_running_maximum(self) -> None:
        falling = {"a": Curve(1, (0.3, 0.6), (0.5, 0.1)), "b": Curve(1, (0.3, 0.6), (0.5, 0.5))}
        level = {"a": falling["b"], "b": falling["b"]}
        assert share_out(falling, 0.4, 0.9) == share_out(level, 0.4, 0.9)

    def test_no_other_sharing_costs_less(self) -> None:
        def cost(shares: dict[str, float]) -> float:
            parts = ((self.CURVES[name], share) for name, share in shares.items())
            return sum(float(np.interp(share, (0, *c.shares), (0, *c.costs))) for c, share in parts)

        found, random = share_out(self.CURVES, 0.6, 0.8), np.random.default_rng(0)
        for _ in range(200):
            small, dead = random.uniform(0, 0.8, size=2)
            large = (0.6 * 1050 - 100 * small - 50 * dead) / 900
            assert cost(found) <= cost({"large": large, "small": small, "dead": dead}) + 1e-9

    def test_curves_are_added_and_the_metric_counts_beside_the_outputs(self) -> None:
        points = [{"share": 0.8, "drop": 0.5, "error": 1.0}, {"share": 0.5, "drop": -0.1, "error": 0.2}]
        curve = curve_of(points, 10, reference=0.5)
        assert curve == Curve(10, (0.5, 0.8), (0.2, 2.0))
        assert added([curve, curve]) == Curve(10, (0.5, 0.8), (0.4, 4.0))

    def test_channels_stay_in_multiples(self) -> None:
        sizes = {"a": 32, "b": 64, "c": 10}
        gone = in_multiples({"a": 0.3, "b": 0.6, "c": 0.5}, sizes, 8, 0.9)
        assert all((sizes[name] - count) % 8 == 0 for name, count in gone.items() if count)
        assert sum(gone.values()) == pytest.approx(0.3 * 32 + 0.6 * 64 + 5, abs=4)
        assert in_multiples({"a": 0.5}, {"a": 8}, 8, 0.9) == {"a": 0}


class TestAllocation:
    def test_zeros_go_where_they_cost_least(self) -> None:
        module = net()
        config = prune_weights.Config(sparsity=0.7, allocate="sensitivity", rounds=2, finetune=None)
        outcome = config.reduce(bench(module))
        coverage = outcome.coverage
        zeros = sum(row["changed"] for row in coverage["changed"])
        assert zeros / coverage["parameters"] == pytest.approx(0.7, abs=1e-3)
        shares = dict.fromkeys(("0", "3", "6"), 0.0)
        shares |= {row["name"]: row["changed"] / row["of"] for row in coverage["changed"]}
        rows = sensitivity.measure(model(net()), SensitivityConfig())["layers"]
        costs = {row["name"]: (row["error"] + row["drop"]) / row["parameters"] for row in rows}
        assert min(shares, key=shares.__getitem__) == max(costs, key=costs.__getitem__)
        assert len({round(share, 3) for share in shares.values()}) > 1

    def test_channels_go_where_they_cost_least(self) -> None:
        module = net(64)
        config = prune_channels.Config(ratio=0.25, allocate="sensitivity", multiple=8, finetune=None)
        outcome = config.reduce(bench(module))
        # A quarter of all: the half of the second layer's that hardly counts.
        assert (module[0].out_channels, module[3].out_channels) == (64, 32)
        assert module(torch.randn(3, 1, 8, 8)).shape == (3, 10)
        assert {row["name"] for row in outcome.coverage["changed"]} == {"3", "6"}

    def test_by_multiplications_too(self) -> None:
        import torch_pruning

        module, x = net(), (torch.randn(2, 1, 8, 8),)
        whole = torch_pruning.utils.count_ops_and_params(module, x)[0]
        prune_channels.Config(flops=0.4, allocate="sensitivity", multiple=1, finetune=None).reduce(
            bench(module)
        )
        assert 0.3 < torch_pruning.utils.count_ops_and_params(module, x)[0] / whole <= 0.4
        assert module[0].out_channels > module[3].out_channels

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"pattern": "2:4"}, "leave pattern out"),
            ({"scope": "local"}, "scope at global"),
        ],
    )
    def test_what_has_the_same_share_everywhere_is_no_allocation(
        self, settings: dict[str, Any], said: str
    ) -> None:
        with pytest.raises(ValidationError, match=said):
            prune_weights.Config(allocate="sensitivity", **settings)
        with pytest.raises(ValidationError, match="scope at uniform"):
            prune_channels.Config(allocate="sensitivity", scope="global")


def test_the_report_shows_every_layer(tmp_path: Path) -> None:
    record = sensitivity.measure(model(net()), FEW)
    titles = [section.title for section in page("small", record).sections]
    assert titles == ["Most sensitive first", "Weights made zero", "Channels made zero", "Weights rounded"]
    text = write(tmp_path, "small", record).read_text(encoding="utf-8")
    assert text.count("<svg") == 4
    assert "accuracy at 95%" in text
    assert "error at INT4" in text
