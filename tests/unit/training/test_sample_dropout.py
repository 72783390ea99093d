"""Dropout drawn by sample: the same for a sample wherever it is, and as random as torch's."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from fmdist.contracts import InputSpec
from fmdist.errors import CapabilityError, DataError, Interrupted
from fmdist.models import cnn, text_cnn
from fmdist.training.dropout import Draws, SampleDropout, drawn_by_sample, drawn_by_worker, own_statistics
from fmdist.training.group import Group
from tests.unit.training.transfer_rig import IMAGE, classes

SEED = 2**62 + 12345
TEXT = (InputSpec("text", (None,), "int64", 9, 8),)
INDEX = torch.arange(64) * 7 + 3


def test_a_part_of_a_batch_has_the_masks_of_the_whole() -> None:
    draws = Draws()
    x = torch.ones(64, 5, 8)
    draws.begin(SEED, INDEX)
    whole = draws.keeps(x, 0.7)
    draws.begin(SEED, INDEX[20:40])
    part = draws.keeps(x[20:40], 0.7)
    assert whole is not None
    assert part is not None
    assert torch.equal(whole[20:40], part)


def test_masks_are_independent_of_each_other() -> None:
    draws = Draws()
    draws.begin(SEED, INDEX)
    masks = [draws.keeps(torch.ones(64, 2000), 0.7) for _ in range(2)]
    draws.begin(SEED + 1, INDEX)
    masks.append(draws.keeps(torch.ones(64, 2000), 0.7))
    found = np.stack([mask.double().numpy() for mask in masks if mask is not None])
    assert found.shape == (3, 64, 2000)
    # The standard error of the share is 0.0013, that of a correlation over 2,000 columns 0.022.
    assert found.mean(axis=(1, 2)) == pytest.approx(0.7, abs=0.006)
    correlations = np.corrcoef(found.reshape(192, 2000)) - np.eye(192)
    assert np.abs(correlations).max() < 0.13
    assert correlations.std() < 0.03
    assert np.corrcoef(found.reshape(192, 2000).T[:200]).std() < 0.13


def test_layers_draw_by_sample_only_while_entered() -> None:
    linear, draws = nn.Linear(4, 4), Draws()
    module = nn.Sequential(linear, nn.Dropout(0.5))
    nn.init.ones_(linear.weight)
    x = torch.ones(6, 4)
    with drawn_by_sample([module], draws):
        assert type(module[1]) is SampleDropout
        draws.begin(SEED, INDEX[:6])
        first = module(x)
        draws.begin(SEED, INDEX[:6])
        assert torch.equal(module(x), first)
        kept = first != 0
        torch.testing.assert_close(first[kept], 2 * linear(x)[kept])
        module.eval()
        assert torch.equal(module(x), linear(x))
    assert type(module[1]) is nn.Dropout
    assert not hasattr(module[1], "draws")


def test_rows_that_are_no_samples_are_left_to_torch() -> None:
    draws = Draws()
    assert draws.keeps(torch.ones(4, 3), 0.5) is None
    draws.begin(SEED, INDEX[:6])
    assert draws.keeps(torch.ones(4, 3), 0.5) is None
    assert draws.keeps(torch.ones(12, 3), 0.5) is not None


def test_what_is_each_workers_own_is_named() -> None:
    images = classes("a", "b", inputs=IMAGE)
    assert own_statistics([cnn.Config(channels=(4,), blocks=1, norm="group").build(images, 2)]) == []
    assert own_statistics([cnn.Config(channels=(4,), blocks=1, norm="batch").build(images, 2)])
    plain, stacked = (nn.LSTM(3, 3, layers, dropout=share) for layers, share in ((1, 0.0), (2, 0.5)))
    assert drawn_by_worker([nn.ModuleDict({"a": plain, "b": stacked, "c": nn.Dropout(0.5)})]) == ["b"]
    assert drawn_by_worker([text_cnn.Config(dropout=0.5).build(classes("a", "b", inputs=TEXT), 2)]) == []


def test_alone_every_answer_is_ones_own() -> None:
    group = Group(0, 1, torch.device("cpu"))
    assert group.leads
    assert group.sum([1.5, 2.0]) == [1.5, 2.0]
    assert group.gather("a") == ["a"]
    assert group.share({"b": 1}) == {"b": 1}


@pytest.mark.parametrize(
    "error",
    [
        CapabilityError(field="a", problem="b", value=None, allowed="c", fix="d"),
        DataError(problem="no value"),
        Interrupted(15, "saved"),
    ],
)
def test_errors_cross_processes_as_they_are(error: CapabilityError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.problems, again.exit_code) == (str(error), error.problems, error.exit_code)
