"""Recommendation: losses and metrics against closed forms, the two rules, the two baselines, refusals."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fmdist.contracts import DataSpec, Draw, InputSpec, TargetSpec
from fmdist.errors import CapabilityError, UsageError
from fmdist.models import bpr, matrix_factorization, two_tower
from fmdist.models.base import ModelConfig
from fmdist.stages.modules import Modules
from fmdist.tasks import decoding
from fmdist.tasks.decoding.recommendation import best
from fmdist.tasks.ranking import NDCG, HitRate, Recall
from fmdist.tasks.recommendation import LOSSES, Config, Ranking, RatingPrediction, biases

USERS, ITEMS = 4, 6
IDS = (InputSpec("user", (), "int64", 1 + USERS), InputSpec("item", (), "int64", 1 + ITEMS))
RATINGS = DataSpec(IDS, TargetSpec("value", ("rating",), range=(1, 5)), 8, moments=((3.5, 2.0),))
FEEDBACK = DataSpec(IDS, TargetSpec("items", tuple("abcdef"), ITEMS), 8)
FACTORS = matrix_factorization.Config(factors=8)


class Part:
    """A split of fixed arrays."""

    def __init__(self, target: Any, **inputs: Any) -> None:
        self.targets = np.asarray(target)
        self._inputs = {name: np.asarray(value) for name, value in inputs.items()}

    def __len__(self) -> int:
        return len(self.targets)

    def __getitems__(self, draw: Draw) -> dict[str, Any]:
        taken = {**self._inputs, "target": self.targets, "index": np.arange(len(self))}
        return {name: torch.from_numpy(value[draw.indices]) for name, value in taken.items()}


def build(spec: DataSpec, model: ModelConfig = FACTORS, **fields: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Config.model_validate(fields).build(spec, Modules(model))


def runs(module: nn.Module, names: list[str]) -> Any:
    def run(inputs: Mapping[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        with torch.no_grad():
            outputs: Tensor = module(*[torch.from_numpy(inputs[name]) for name in names])
        return outputs.numpy()

    return run


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        ("bce", (math.log1p(math.exp(-2)) + math.log1p(math.exp(1)) + math.log(2)) / 3),
        ("bpr", (math.log1p(math.exp(-1)) + math.log1p(math.exp(-2))) / 2),
        ("softmax", -math.log(math.exp(2) / (math.exp(2) + math.exp(1) + 1))),
    ],
)
def test_losses_are_their_closed_forms(loss: str, expected: float) -> None:
    # The interaction scores 2, its two negatives 1 and 0.
    losses = LOSSES[loss](torch.tensor([[2.0, 1.0, 0.0]] * 3))
    torch.testing.assert_close(losses, torch.full((3,), expected))


def pairs(size: int = 8) -> dict[str, Tensor]:
    batch = {"user": 1 + torch.arange(size) % USERS}
    batch["item"] = 1 + (2 * batch["user"]) % ITEMS
    batch["negative"] = 1 + (batch["item"][:, None] + torch.arange(ITEMS - 1)) % ITEMS
    return {**batch, "target": batch["item"][:, None] - 1, "index": torch.arange(size)}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("model", [FACTORS, bpr.Config(factors=8), two_tower.Config(embedding=8, width=8)])
def test_training_brings_the_met_items_to_the_top(loss: str, model: ModelConfig) -> None:
    task: Ranking = build(FEEDBACK, model, loss=loss, top=1)
    roles, batch = task.roles(), pairs()
    optimizer = torch.optim.Adam(roles["model"].parameters(), lr=0.02)
    for _ in range(60):
        out = task.phases()[0].loss(roles, batch, torch.Generator())
        assert out.count == task.count(batch) == 8
        optimizer.zero_grad()
        torch.autograd.backward(out.loss_sum / out.count)
        optimizer.step()
    asked = {"user": batch["user"].numpy(), "seen": np.full((8, 1), -1), "index": np.arange(8)}
    found = decoding.rows(task.decoding(), runs(task.served(roles), ["user"]), asked)
    assert np.array_equal(found[:, :1], batch["target"].numpy())


def test_ratings_are_learned_in_their_own_unit() -> None:
    task: RatingPrediction = build(RATINGS)
    batch = {
        "user": torch.tensor([1, 2]),
        "item": torch.tensor([3, 4]),
        "target": torch.tensor([[5.5], [3.5]]),
    }
    for parameter in task.roles()["model"].parameters():
        nn.init.zeros_(parameter)
    out = task.loss(task.roles(), batch, torch.Generator())
    assert out.loss_sum.item() == pytest.approx(1.0), "the mean is 3.5, the deviation 2"
    assert out.count == 2
    assert task.outputs(task.roles(), batch).tolist() == [[3.5], [3.5]]


def test_ratings_are_held_within_their_range() -> None:
    rule = json.loads(json.dumps(build(RATINGS).decoding()))
    batch = {"user": np.array([1, 2, 3]), "item": np.array([1, 1, 1]), "index": np.arange(3)}
    run: Any = lambda inputs: np.array([[0.2], [4.5], [9.0]], np.float32)  # noqa: E731
    assert decoding.rows(rule, run, batch).tolist() == [[1.0], [4.5], [5.0]]
    assert decoding.rows({**rule, "range": None}, run, batch)[2] == 9
    assert decoding.answer(rule, run, batch)[1] == {"values": {"rating": 4.5}}
    assert set(decoding.feed(rule, batch)) == {"user", "item"}
    errors = decoding.errors(rule, np.array([[1.0], [4.5]]), np.array([[2.0], [4.0]]))
    assert errors is not None
    assert errors.tolist() == [1.0, 0.5]


def test_best_leaves_out_what_was_seen() -> None:
    scores = np.array([[0.1, 0.9, 0.5, 0.5], [0.4, 0.3, 0.2, 0.1]], np.float32)
    found = best(scores, np.array([[1, -1], [-1, -1]]), top=2)
    assert found[0].tolist() == pytest.approx([2, 3, 0.5, 0.5]), "equal scores in the items' order"
    assert found[1].tolist() == pytest.approx([0, 1, 0.4, 0.3])
    assert scores[0, 1] == np.float32(0.9), "the scores are left as they were"


def test_best_fills_up_where_too_few_items_are_left() -> None:
    scores = np.array([[0.3, 0.2, 0.1]], np.float32)
    found = best(scores, np.array([[0, 2]]), top=2)
    assert found[0].tolist() == pytest.approx([1, -1, 0.2, 0])
    assert best(scores, np.array([[0, 2]]), top=5).shape == (1, 10)
    answer = decoding.decode({"rule": "rank", "names": ["a", "b", "c"]}, found)
    assert answer == [{"items": [{"name": "b", "score": pytest.approx(0.2)}]}]


def test_answers_take_a_number_of_items() -> None:
    rule = build(FEEDBACK, top=2).decoding()
    run: Any = lambda inputs: np.arange(ITEMS, dtype=np.float32)[None]  # noqa: E731
    batch = {"user": np.array([1]), "seen": np.array([[5]]), "index": np.arange(1)}
    assert [item["name"] for item in decoding.answer(rule, run, batch)[0]["items"]] == ["e", "d"]
    (more,) = decoding.answer(rule, run, batch, {"top": 3})
    assert [item["name"] for item in more["items"]] == ["e", "d", "c"]
    with pytest.raises(UsageError, match="got 7; allowed: 1 to 6"):
        decoding.answer(rule, run, batch, {"top": 7})
    with pytest.raises(UsageError, match="ranks nothing"):
        decoding.answer(build(RATINGS).decoding(), run, batch, {"top": 3})


def test_metrics_are_their_closed_forms() -> None:
    # Two users, K = 3: the first finds the 1st and 3rd of two wanted; the second none of four.
    rows = torch.tensor([[4, 0, 2, 9, 8, 7], [1, -1, -1, 5, 0, 0]], dtype=torch.float32)
    target = torch.tensor([[2, 4, -1, -1], [0, 2, 3, 5]])
    expected = {
        HitRate: 0.5,
        Recall: (2 / 2 + 0 / 4) / 2,
        NDCG: ((1 + 1 / 2) / (1 + 1 / math.log2(3)) + 0) / 2,
    }
    for kind, value in expected.items():
        metric = kind(3)
        metric.update(rows, target)
        assert float(metric.compute()) == pytest.approx(value)
    first = HitRate(1)
    first.update(rows[:, [0, 3]], target)
    assert float(first.compute()) == 0.5


def test_more_wanted_items_than_answers_can_still_be_perfect() -> None:
    metric = NDCG(2)
    metric.update(torch.tensor([[3.0, 1.0, 0.5, 0.4]]), torch.tensor([[0, 1, 2, 3]]))
    assert float(metric.compute()) == pytest.approx(1.0)


def test_ranking_metrics_are_named_after_their_number() -> None:
    task = build(FEEDBACK, top=3)
    assert set(task.metrics()) == {"ndcg_3", "hr_3", "recall_3"}
    assert task.primary == ("ndcg_3", "max")
    with pytest.raises(CapabilityError, match="no such metric"):
        build(FEEDBACK, top=3, primary="ndcg_10")


def test_popularity_is_the_baseline_of_rankings() -> None:
    task = build(FEEDBACK, top=2)
    train = Part([[1], [1], [1], [4], [4], [0]], user=[1, 2, 3, 1, 2, 3])
    part = Part([[0], [2]], user=[1, 4], seen=[[1, 4], [-1, -1]])
    found = task.baseline(train, part)
    assert found.tolist() == [[0, 2, 1, 0], [1, 4, 3, 2]]
    errors = decoding.errors(task.decoding(), found, part.targets)
    assert errors is not None
    assert errors.tolist() == [0, 1]


def test_biases_are_the_baseline_of_ratings() -> None:
    task = build(RATINGS)
    users, items = [1, 1, 2, 2, 3, 3], [1, 2, 1, 2, 1, 2]
    ratings = np.array([[5.0], [4.0], [3.0], [2.0], [4.0], [3.0]], np.float32)
    train = Part(ratings, user=users, item=items)
    found = task.baseline(train, Part(np.zeros((4, 1)), user=[1, 2, 0, 0], item=[1, 2, 2, 0]))
    assert found[3, 0] == pytest.approx(3.5), "nothing known: the mean"
    assert found[0] > found[3] > found[2] > found[1]
    user_bias, item_bias = biases(np.array(users), np.array(items), ratings[:, 0], (4, 3))
    # The last half-step minimizes sum (r - m - b_u - b_i)^2 + 15 sum b_u^2 in the users' biases.
    left = ratings[:, 0] - ratings.mean() - user_bias[users] - item_bias[items]
    assert [left[np.array(users) == user].sum() for user in (1, 2, 3)] == pytest.approx(15 * user_bias[1:])


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(CapabilityError, match="squared error"):
        build(RATINGS, loss="bpr")
    table = DataSpec((InputSpec("features", (3,)),), TargetSpec("value", ("price",)), moments=((0.0, 1.0),))
    with pytest.raises(CapabilityError, match="learns from users and items") as caught:
        build(table)
    assert caught.value.problems[0].field == "task.kind"
    assert "interactions" in caught.value.problems[0].fix
