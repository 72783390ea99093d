"""Recommenders: scores of pairs and of a whole catalogue agree, and what was never seen counts as average."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fmdist import component
from fmdist.contracts import DataSpec, InputSpec, TargetSpec
from fmdist.errors import CapabilityError
from fmdist.models import bpr, factorization_machine, matrix_factorization, ncf, two_tower
from fmdist.models.base import ModelConfig
from fmdist.models.recommender import IdEmbedding, Recommender

CONFIGS: dict[str, ModelConfig] = {
    "matrix_factorization": matrix_factorization.Config(factors=4),
    "factorization_machine": factorization_machine.Config(factors=4),
    "bpr": bpr.Config(factors=4),
    "ncf": ncf.Config(factors=3, embedding=4, hidden=(6, 5)),
    "two_tower": two_tower.Config(embedding=4, hidden=(6,), width=3),
}
ITEMS = 6
GENRES = ((0, 0), (1, 2), (2, 0), (3, 1), (0, 0), (3, 0), (2, 1))
YEARS = ((0,), (1,), (2,), (1,), (2,), (0,), (1,))


def spec_of(kind: str = "items") -> DataSpec:
    inputs = (
        InputSpec("user", (), "int64", 5),
        InputSpec("user.town", (), "int64", 3),
        InputSpec("item", (), "int64", 1 + ITEMS),
        InputSpec("item.genre", (2,), "int64", 4),
        InputSpec("item.year", (), "int64", 3),
    )
    target = (
        TargetSpec("items", tuple("abcdef"), ITEMS) if kind == "items" else TargetSpec("value", ("rating",))
    )
    return DataSpec(inputs, target, tables={"item.genre": GENRES, "item.year": YEARS})


def build(kind: str, spec: DataSpec) -> Recommender:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: Any = CONFIGS[kind].build(spec, 1)
        # Not the initial zeros, which would hide a bias in the wrong place.
        for parameter in model.parameters():
            nn.init.normal_(parameter, std=0.5)
        for part in model.modules():
            if isinstance(part, IdEmbedding):
                part.weight.data[0] = 0
    return model.eval()  # type: ignore[no-any-return]


def item_inputs(ids: Tensor) -> tuple[Tensor, ...]:
    return ids, torch.tensor(GENRES)[ids], torch.tensor(YEARS)[ids, 0]


def test_every_recommender_is_tested_here() -> None:
    kinds = component.kinds("models").values()
    assert {kind.name for kind in kinds if kind.facts.get("form") == "scores"} == set(CONFIGS)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_ranking_is_the_scores_of_all_pairs(kind: str) -> None:
    model = build(kind, spec_of())
    users = (torch.tensor([1, 4, 0]), torch.tensor([2, 0, 1]))
    with torch.no_grad():
        ranked = model.rank(*users)
        assert ranked.shape == (3, ITEMS)
        for row in range(3):
            one = [values[row].repeat(ITEMS) for values in users]
            pairs = model(*one, *item_inputs(torch.arange(1, 1 + ITEMS)))
            torch.testing.assert_close(ranked[row], pairs[:, 0])
    assert len(set(ranked.flatten().tolist())) > ITEMS


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_unknown_stays_zero_in_training(kind: str) -> None:
    model = build(kind, spec_of()).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    users = (torch.tensor([0, 1]), torch.tensor([0, 2]))
    for _ in range(2):
        optimizer.zero_grad()
        torch.autograd.backward(model(*users, *item_inputs(torch.tensor([0, 3]))).square().sum())
        optimizer.step()
    embeddings = [part for part in model.modules() if isinstance(part, IdEmbedding)]
    assert embeddings
    assert all(not part.weight[0].any() for part in embeddings)
    assert any(part.weight.grad is not None and part.weight.grad.any() for part in embeddings)


def test_factorization_is_the_dot_product_and_both_biases() -> None:
    model = build("matrix_factorization", spec_of("value"))
    assert isinstance(model, matrix_factorization.MatrixFactorization)
    weights: dict[str, Tensor] = {name: value.detach() for name, value in model.named_parameters()}
    score = model(torch.tensor([2]), torch.tensor([1]), *item_inputs(torch.tensor([3])))
    expected = weights["vectors.user.weight"][2] @ weights["vectors.item.weight"][3]
    expected = expected + weights["biases.user.weight"][2, 0] + weights["biases.item.weight"][3, 0]
    torch.testing.assert_close(score[0, 0], expected)
    unknown = model(torch.tensor([0]), torch.tensor([0]), *item_inputs(torch.tensor([3])))
    assert torch.equal(unknown[0, 0], weights["biases.item.weight"][3, 0])


def test_factorization_machine_is_the_sum_over_all_pairs_of_ids_and_categories() -> None:
    model = build("factorization_machine", spec_of("value"))
    assert isinstance(model, factorization_machine.FactorizationMachine)
    weights: dict[str, Tensor] = dict(model.named_parameters())
    # The first item has two genres; the second one, whose list ends in padding.
    for number, genres in ((1, [1, 2]), (2, [2])):
        inputs = (torch.tensor([2]), torch.tensor([1]), *item_inputs(torch.tensor([number])))
        single = [("user.0", 2), ("user.1", 1), ("item.0", number), ("item.2", YEARS[number][0])]
        single += [("item.1", genre) for genre in genres]
        vectors = [weights[f"vectors.{field}.weight"][code] for field, code in single]
        expected = model.constant[0] + sum(
            weights[f"weights.{name}.weight"][code, 0] for name, code in single
        )
        for position, vector in enumerate(vectors):
            for other in vectors[position + 1 :]:
                expected = expected + vector @ other
        torch.testing.assert_close(model(*inputs)[0, 0], expected)


def test_neural_filtering_is_a_network_on_the_concatenation() -> None:
    model = build("ncf", spec_of("value"))
    assert isinstance(model, ncf.NeuralFiltering)
    user, item = torch.tensor([2]), torch.tensor([3])
    weights: dict[str, Tensor] = dict(model.named_parameters())
    both = torch.cat([model.embeddings["user"](user), model.embeddings["item"](item)], dim=1)
    weight = torch.cat([weights["first.user.weight"], weights["first.item.weight"]], dim=1)
    hidden = model.network(both @ weight.T + weights["first.item.bias"])
    product = model.factors["user"](user) * model.factors["item"](item)
    expected = model.output(torch.cat([product, hidden], dim=1))
    torch.testing.assert_close(model(user, torch.tensor([1]), *item_inputs(item)), expected)


def test_two_towers_score_by_a_scaled_cosine() -> None:
    model = build("two_tower", spec_of())
    with torch.no_grad():
        vectors, _ = model.side("item", item_inputs(torch.arange(1, 1 + ITEMS)))
    torch.testing.assert_close(vectors.square().sum(dim=1), torch.full((ITEMS,), 10.0))


def test_padding_of_a_list_adds_nothing() -> None:
    embedding = IdEmbedding(InputSpec("item.genre", (3,), "int64", 4), 5, std=1.0)
    together = embedding(torch.tensor([[1, 3, 0], [1, 0, 0], [3, 0, 0], [0, 0, 0]]))
    torch.testing.assert_close(together[0], together[1] + together[2])
    assert not together[3].any()


def test_a_ranking_model_refuses_ratings() -> None:
    with pytest.raises(CapabilityError, match="users have no bias"):
        CONFIGS["bpr"].build(spec_of("value"), 1)


@pytest.mark.parametrize("kind", CONFIGS)
def test_other_data_is_refused(kind: str) -> None:
    table = DataSpec((InputSpec("features", (4,)),), TargetSpec("items", ("a",), 1))
    with pytest.raises(CapabilityError, match="needs an input 'user'"):
        CONFIGS[kind].build(table, 1)
