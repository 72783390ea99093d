from __future__ import annotations

import numpy as np
import pytest

from fmdist.data.plan import BatchPlan
from fmdist.errors import DataError


def epoch_of(plan: BatchPlan, epoch: int) -> list[int]:
    return [i for step in range(plan.steps_per_epoch) for i in plan.indices(epoch, step).tolist()]


@pytest.mark.parametrize(
    ("size", "batch", "drop_last", "steps"),
    [(10, 4, False, 3), (10, 4, True, 2), (8, 4, False, 2), (8, 4, True, 2), (3, 4, False, 1)],
)
def test_steps(size: int, batch: int, drop_last: bool, steps: int) -> None:
    plan = BatchPlan(size, batch, seed=0, drop_last=drop_last)
    assert plan.steps_per_epoch == steps
    assert len(epoch_of(plan, 0)) == (steps * batch if drop_last else size)


def test_an_epoch_visits_every_sample_once() -> None:
    assert sorted(epoch_of(BatchPlan(101, 8, seed=3), 2)) == list(range(101))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    plan = BatchPlan(50, 8, seed=1)
    forward = [epoch_of(plan, epoch) for epoch in range(3)]
    assert epoch_of(plan, 0) == forward[0], "going back gives the same order"
    assert BatchPlan(50, 8, seed=1).indices(2, 3).tolist() == forward[2][24:32], "a resume needs no history"
    assert BatchPlan(50, 5, seed=1).indices(0, 0).tolist() == forward[0][:5]
    assert forward[0] != forward[1]
    assert epoch_of(BatchPlan(50, 8, seed=2), 0) != forward[0]


def test_weights_draw_with_replacement_in_proportion() -> None:
    weights = np.array([0.0, 1.0, 3.0] * 1000)
    drawn = np.array(epoch_of(BatchPlan(3000, 64, seed=0, weights=weights), 0)) % 3
    assert (drawn == 0).sum() == 0
    assert abs((drawn == 2).mean() - 0.75) < 0.03


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_parts_are_contiguous_and_cover_the_batch(parts: int) -> None:
    indices = BatchPlan(20, 10, seed=0).indices(0, 0)
    pieces = BatchPlan.parts(indices, parts)
    assert len(pieces) == parts
    assert np.concatenate(pieces).tolist() == indices.tolist()
    assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


@pytest.mark.parametrize("step", [-1, 3])
def test_a_step_outside_the_epoch_is_refused(step: int) -> None:
    with pytest.raises(IndexError):
        BatchPlan(10, 4, seed=0).indices(0, step)


@pytest.mark.parametrize(("size", "batch", "drop_last"), [(0, 4, False), (10, 0, False), (3, 4, True)])
def test_an_impossible_plan_is_refused(size: int, batch: int, drop_last: bool) -> None:
    with pytest.raises(DataError, match=r"train\.batch_size"):
        BatchPlan(size, batch, seed=0, drop_last=drop_last)


@pytest.mark.parametrize("weights", [[1.0, 2.0], [1.0, -1.0, 1.0], [0.0, 0.0, 0.0], [1.0, float("nan"), 1.0]])
def test_weights_that_do_not_fit_are_refused(weights: list[float]) -> None:
    with pytest.raises(DataError, match="weights"):
        BatchPlan(3, 1, seed=0, weights=np.array(weights))
