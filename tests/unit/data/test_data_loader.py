from __future__ import annotations

import gc
import multiprocessing
import pickle
from typing import Any

import numpy as np
import pytest
import torch

from fmdist.contracts import Draw
from fmdist.data import digits
from fmdist.data.config import AugmentConfig, ColorJitterConfig, ScaleConfig
from fmdist.data.loader import evaluation_loader, training_loader
from fmdist.data.plan import BatchPlan
from fmdist.data.splits import Samples
from fmdist.errors import DataError

ALL_CHANGES = AugmentConfig(
    crop_padding=1,
    horizontal_flip=0.5,
    vertical_flip=0.5,
    rotate=20,
    scale=ScaleConfig(min=0.8, max=1.2),
    color=ColorJitterConfig(brightness=0.3, contrast=0.3),
)


@pytest.fixture(scope="module")
def plain() -> Samples:
    return digits.Config().build(0).train


@pytest.fixture(scope="module")
def augmented() -> Samples:
    return digits.Config(augment=ALL_CHANGES).build(0).train


def indices(loader: Any) -> list[list[int]]:
    return [batch["index"].tolist() for batch in loader]


def test_the_loader_follows_the_plan_over_epochs(plain: Samples) -> None:
    plan = BatchPlan(len(plain), 500, seed=1)
    loader = training_loader(plain, plan, (0, 0), epochs=2)
    expected = [plan.indices(epoch, step).tolist() for epoch in range(2) for step in range(3)]
    assert indices(loader) == expected
    assert len(loader) == 6


@pytest.mark.parametrize("start", [(0, 1), (1, 0), (1, 2), (2, 0)])
def test_a_resume_continues_where_it_stopped(plain: Samples, start: tuple[int, int]) -> None:
    plan = BatchPlan(len(plain), 500, seed=1)
    whole = indices(training_loader(plain, plan, (0, 0), epochs=2))
    rest = training_loader(plain, plan, start, epochs=2)
    assert indices(rest) == whole[start[0] * 3 + start[1] :]
    assert len(rest) == len(indices(rest))


@pytest.mark.parametrize(("world_size", "accumulate"), [(2, 1), (1, 4), (2, 2)])
def test_ranks_and_microbatches_share_the_global_batch(
    plain: Samples, world_size: int, accumulate: int
) -> None:
    plan = BatchPlan(len(plain), 500, seed=1)
    ranks = [
        indices(training_loader(plain, plan, (0, 0), 1, rank, world_size, accumulate))
        for rank in range(world_size)
    ]
    for step in range(plan.steps_per_epoch):
        micro = [batch for rank in ranks for batch in rank[step * accumulate : (step + 1) * accumulate]]
        assert [i for batch in micro for i in batch] == plan.indices(0, step).tolist()


def test_a_batch_that_the_workers_do_not_divide_is_refused(plain: Samples) -> None:
    plan = BatchPlan(len(plain), 64, seed=0)
    with pytest.raises(DataError, match="a multiple of 6"):
        training_loader(plain, plan, (0, 0), 1, world_size=3, accumulate=2)


def test_a_last_batch_with_too_few_samples_is_refused(plain: Samples) -> None:
    size = (len(plain) - 1) // 4 * 4  # leaves one sample or more, fewer than four
    plan = BatchPlan(size + 1, size, seed=0)
    with pytest.raises(DataError, match=r"last batch has 1 sample.*Drop the last"):
        training_loader(plain, plan, (0, 0), 1, accumulate=2)
    dropped = BatchPlan(size + 1, size, seed=0, drop_last=True)
    assert len(training_loader(plain, dropped, (0, 0), 1, accumulate=2)) == 2


def test_loading_leaves_the_global_random_state_alone(augmented: Samples) -> None:
    before = torch.random.get_rng_state()
    for _ in evaluation_loader(augmented, 500):
        pass
    assert torch.equal(torch.random.get_rng_state(), before)


def test_augmentation_is_keyed_by_epoch_and_sample(augmented: Samples) -> None:
    one = augmented.__getitems__(Draw(0, np.array([5])))["image"]
    among = augmented.__getitems__(Draw(0, np.array([9, 5, 7])))["image"]
    assert torch.equal(one[0], among[1]), "its neighbours don't matter"
    assert not torch.equal(one, augmented.__getitems__(Draw(1, np.array([5])))["image"])
    other_seed = digits.Config(
        augment=ALL_CHANGES, split=digits.Config().split.model_copy(update={"seed": 0})
    )
    assert not torch.equal(one, other_seed.build(1).train.__getitems__(Draw(0, np.array([5])))["image"])


def test_workers_change_neither_batches_nor_order(augmented: Samples) -> None:
    plan = BatchPlan(64, 8, seed=4)
    here = list(training_loader(augmented, plan, (0, 2), 2))
    there = list(training_loader(augmented, plan, (0, 2), 2, workers=2))
    assert len(here) == len(there) == 14
    for mine, theirs in zip(here, there, strict=True):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_workers_end_with_the_iteration(plain: Samples) -> None:
    loader = training_loader(plain, BatchPlan(len(plain), 8, seed=0), (0, 0), 5, workers=2)
    batches = iter(loader)
    next(batches)
    running = multiprocessing.active_children()
    assert len(running) == 2
    del batches
    gc.collect()
    assert not any(worker.is_alive() for worker in running)


def test_an_augmented_split_can_be_sent_to_a_spawned_worker(augmented: Samples) -> None:
    draw = Draw(1, np.arange(8))
    sent = pickle.loads(pickle.dumps(augmented))
    assert torch.equal(sent.__getitems__(draw)["image"], augmented.__getitems__(draw)["image"])


def test_augmentation_changes_pixels_but_not_targets(plain: Samples, augmented: Samples) -> None:
    draw = Draw(0, np.arange(32))
    before, after = plain.__getitems__(draw), augmented.__getitems__(draw)
    assert torch.equal(before["target"], after["target"])
    assert before["image"].shape == after["image"].shape
    assert not torch.equal(before["image"], after["image"])
    assert torch.equal(augmented.plain().__getitems__(draw)["image"], before["image"])


def test_a_crop_moves_the_image_within_its_padding(plain: Samples) -> None:
    split = digits.Config(normalize=False, augment=AugmentConfig(crop_padding=2)).build(0).train
    draw = Draw(0, np.arange(20))
    still, moved = split.plain().__getitems__(draw)["image"], split.__getitems__(draw)["image"]
    padded = torch.nn.functional.pad(still, (2, 2, 2, 2))
    crops = padded.unfold(2, 8, 1).unfold(3, 8, 1).flatten(2, 3)
    assert all((crops[i, 0] == moved[i, 0]).all(dim=(1, 2)).any() for i in range(20))


@pytest.mark.parametrize("field", ["saturation", "hue"])
def test_grey_images_have_no_hue(field: str) -> None:
    changes = AugmentConfig(color=ColorJitterConfig.model_validate({field: 0.2}))
    with pytest.raises(DataError, match="grey images"):
        digits.Config(augment=changes).build(0)
