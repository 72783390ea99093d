"""Channels go from all layers that share them, and the model still runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fmdist.compression import latency
from fmdist.compression.finetune_config import FinetuneConfig
from fmdist.compression.passes import prune_channels
from fmdist.compression.subject import Subject
from fmdist.contracts import DataSpec, InputSpec, TargetSpec
from fmdist.errors import CapabilityError, CompressionError
from fmdist.models import bert, cnn, resnet, transformer_encoder, vit
from tests.unit.compression.benches import SPLITS, bench


def net(width: int = 16) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.GroupNorm(4, width),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, 10),
    )


@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
@pytest.mark.parametrize("scope", ["uniform", "global"])
def test_half_of_the_channels_go(importance: Any, scope: Any) -> None:
    module = net()
    config = prune_channels.Config(ratio=0.5, importance=importance, scope=scope, multiple=4, samples=64)
    outcome = config.reduce(bench(module))
    widths = [module[0].out_channels, module[3].out_channels]
    assert all(width % 4 == 0 for width in widths)
    assert widths == [8, 8] if scope == "uniform" else sum(widths) < 32
    assert module[1].num_features == module[3].in_channels == widths[0]
    assert module[4].num_channels == module[7].in_features == widths[1]
    assert module(torch.randn(3, 1, 8, 8)).shape == (3, 10)
    covered = outcome.coverage
    # The head's inputs went with their channels.
    assert covered["changed_layers"] == covered["layers"] == 3
    assert covered["left"] == []
    assert covered["changed_parameters"] == sum(row["changed"] for row in covered["changed"])


def test_by_the_scale_of_its_batchnorm() -> None:
    module = net()
    with torch.no_grad():
        module[1].weight.copy_(torch.arange(16.0))
    before = module[0].weight[8:].detach().clone()
    outcome = prune_channels.Config(ratio=0.5, importance="bn_scale").reduce(bench(module))
    assert torch.equal(module[0].weight, before)
    # What has no BatchNorm stays: GroupNorm's scales are none.
    assert module[3].out_channels == 16
    assert [row["name"] for row in outcome.coverage["left"]] == ["7"]


def test_the_largest_channels_stay() -> None:
    module = net()
    with torch.no_grad():
        module[0].weight[::2] *= 10
    before = module[0].weight[::2].detach().clone()
    prune_channels.Config(ratio=0.5).reduce(bench(module))
    assert torch.equal(module[0].weight, before)


def test_the_multiplications_that_may_stay() -> None:
    import torch_pruning

    module = net(64)
    x = (torch.randn(2, 1, 8, 8),)
    whole = torch_pruning.utils.count_ops_and_params(module, x)[0]
    prune_channels.Config(flops=0.3, multiple=1).reduce(bench(module))
    share = torch_pruning.utils.count_ops_and_params(module, x)[0] / whole
    assert 0.25 < share <= 0.3


def test_rounds_train_in_between() -> None:
    module = net(32)
    widths: list[tuple[str, int]] = []

    def train(config: FinetuneConfig, name: str) -> None:
        widths.append((name, module[0].out_channels))

    prune_channels.Config(ratio=0.5, rounds=2, multiple=4).reduce(bench(module, train=train))
    assert widths == [("round-1", 24), ("round-2", 16)]


def test_a_residual_network_keeps_its_sums_whole() -> None:
    module: Any = resnet.Config(depth=20, width=16).build(SPLITS.spec, 10)
    outcome = prune_channels.Config(ratio=0.5).reduce(bench(module))
    assert module.stem[0].out_channels == 8
    assert module.head.in_features == 32
    assert outcome.coverage["changed_layers"] == outcome.coverage["layers"]
    sizes = [sum(value.numel() for value in part.parameters()) for part in (module,)]
    assert sizes[0] < 0.3 * 274_000


TOKENS = DataSpec(
    (InputSpec("text", (None,), "int64", size=50, longest=12),), TargetSpec("class", ("a", "b"))
)
IDS = (torch.randint(1, 50, (2, 12)),)


@pytest.mark.parametrize("model", [bert.Config(hidden=64, heads=4), transformer_encoder.Config()], ids=str)
def test_heads_stay_whole(model: Any) -> None:
    module = model.build(TOKENS, 2).eval()
    outcome = prune_channels.Config(ratio=0.5).reduce(bench(module, IDS, fixed=model.fixed))
    found = [part for part in module.modules() if hasattr(part, "query")]
    assert len(found) == 2
    for part in found:
        widths = {getattr(part, name).out_features for name in ("query", "key", "value")}
        assert widths == {32 if isinstance(model, bert.Config) else 64}
    assert module(torch.randint(1, 50, (3, 7))).shape == (3, 2)
    left = {row["name"]: row["reason"] for row in outcome.coverage["left"]}
    if isinstance(model, bert.Config):
        assert module.bert.embeddings.word_embeddings.weight.shape == (50, 32)
        assert not left
    else:
        assert left["embedding"] == "the table of positions that is added to it has its width"


def test_patches_and_their_class_token_go_together() -> None:
    module: Any = vit.Config().build(SPLITS.spec, 10)
    prune_channels.Config(ratio=0.5).reduce(bench(module))
    assert module.class_token.shape[2] == module.positions.shape[2] == module.patches.out_channels == 32
    assert module(torch.randn(3, 1, 8, 8)).shape == (3, 10)


def test_ignored_layers_and_unknown_names() -> None:
    module = net()
    outcome = prune_channels.Config(ratio=0.5, ignore=("0",)).reduce(bench(module))
    assert (module[0].out_channels, module[3].out_channels) == (16, 8)
    assert {"name": "0", "reason": "ignored by the recipe"}.items() <= {
        key: row[key] for row in outcome.coverage["left"] if row["name"] == "0" for key in ("name", "reason")
    }.items()
    with pytest.raises(CapabilityError, match="no layer has this name, got 'stem'"):
        prune_channels.Config(ignore=("stem",)).reduce(bench(net()))


def test_a_layer_whose_channels_the_model_counts_itself_stays() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.free, self.counted = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
            self.head = nn.Linear(16, 10)

        def forward(self, x: Tensor) -> Tensor:
            states = self.counted(self.free(x)).reshape(len(x), 16, -1).mean(dim=2)
            logits: Tensor = self.head(states)
            return logits

    module = Counting()
    outcome = prune_channels.Config(ratio=0.5).reduce(bench(module))
    assert (module.free.out_channels, module.counted.out_channels) == (8, 16)
    (reason,) = [row["reason"] for row in outcome.coverage["left"] if row["name"] == "head"]
    assert reason == "its outputs are the model's"


def test_what_has_no_channels_to_remove() -> None:
    recurrent = nn.Sequential(nn.Flatten(2), nn.LSTM(64, 8))
    with pytest.raises(CapabilityError, match="recurrent layers depend on each other over time"):
        prune_channels.Config().reduce(bench(recurrent))
    with pytest.raises(CapabilityError, match="the model has no BatchNorm, got 'bn_scale'"):
        prune_channels.Config(importance="bn_scale").reduce(
            bench(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)))
        )


class TestLatency:
    """With a model of the latency in place of the clock: what its parameters are of the whole's."""

    @staticmethod
    def share(whole: Any) -> Any:
        size = sum(value.numel() for value in whole.parameters())
        return lambda module: sum(value.numel() for value in module.parameters()) / size

    def test_the_smallest_ratio_that_is_fast_enough_is_found_once(self, tmp_path: Path) -> None:
        asked: list[float] = []

        def measured(module: nn.Module) -> float:
            asked.append(share(module))
            return asked[-1]

        module = net(32)
        share = self.share(net(32))
        config = prune_channels.Config(latency=0.4, multiple=4)
        outcome = config.reduce(bench(module, latency=measured, folder=tmp_path))
        assert share(module) <= 0.4
        # The next multiple of channels would be too slow.
        assert share(net(module[0].out_channels + 4)) > 0.4
        assert len(asked) == len(set(asked)) <= 8
        *tried, last = outcome.candidates
        assert [row["value"] for row in tried] == [None] * len(asked)
        assert last["parameters"] == sum(value.numel() for value in module.parameters())
        asked.clear()
        again = net(32)
        config.reduce(bench(again, latency=measured, folder=tmp_path))
        assert not asked
        assert again[0].out_channels == module[0].out_channels

    def test_what_can_not_be_reached_is_refused_with_the_least(self, tmp_path: Path) -> None:
        config = prune_channels.Config(latency=0.01, multiple=4)
        with pytest.raises(CompressionError, match=r"got 0\.01; allowed: at least 0\.\d+, the smallest"):
            config.reduce(bench(net(32), latency=self.share(net(32)), folder=tmp_path))
        assert not list(tmp_path.iterdir())

    @pytest.mark.slow
    def test_openvino_is_faster_with_fewer_channels(self, subject: Subject, tmp_path: Path) -> None:
        spec = subject.export
        with latency.against(spec, spec, tmp_path) as measure:
            same = measure(spec.module)
            wide = cnn.Config(channels=(256, 256), blocks=2).build(SPLITS.spec, 10)
            more = measure(wide)
        assert 0.5 < same < 2 < more
        assert not list(tmp_path.iterdir())
