"""Adapters do the same in training as once they are merged, in every layer of every family that takes one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fmdist.data.splits import DataSplits
from fmdist.errors import CapabilityError
from fmdist.tasks import decoding
from fmdist.training.adapters import ADAPTABLE, adapter_targets, add_adapters, merge_adapters
from fmdist.training.evaluation import runner
from fmdist.training.transfer_config import LoraConfig
from tests.contract.families import arrays, batch_of, find_family, pairs

pytestmark = pytest.mark.slow

# Only families whose task serves what it trains as one module: a generator and a judge have several.
ONE_A_MODEL = list({model: (task, model) for task, model in pairs()}.values())
CPU = torch.device("cpu")

_built: dict[str, DataSplits] = {}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def adaptable(module: nn.Module) -> list[str]:
    """Return the names of layers that are not refused."""
    found = []
    for name, part in module.named_modules():
        if isinstance(part, ADAPTABLE):
            try:
                adapter_targets(module, LoraConfig(targets=(name,)), [])
            except CapabilityError:
                continue
            found.append(name)
    return found


@pytest.mark.parametrize("pair", ONE_A_MODEL, ids="-".join)
def test_merging_changes_nothing(pair: tuple[str, str], folder: Path) -> None:
    family = find_family(*pair, folder, _built)
    built = family.build()
    module = built.served(built.roles())
    names = adaptable(module)
    if not names:
        pytest.skip("no layer can have an adapter")
    rule, batch = built.decoding(), arrays(batch_of(family.data.test))
    fed = decoding.feed(rule, batch)
    plain = runner(built, {**built.roles()}, CPU)(fed)
    add_adapters(module, LoraConfig(targets=tuple(names), rank=2), [], seed=0)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in module.named_parameters():
        if "lora_" in name and parameter.numel():
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
    module.eval()
    adapted = runner(built, built.roles(), CPU)(fed)
    merge_adapters(module)
    found = runner(built, built.roles(), CPU)(fed)
    assert np.abs(adapted - plain).max() > 0
    np.testing.assert_allclose(found, adapted, rtol=1e-3, atol=1e-4 * float(np.abs(adapted).max()))
