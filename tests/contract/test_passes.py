"""No pass on the torch model leaves a family as it was without saying so; README's table was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fmdist import component
from fmdist.compression import sensitivity
from fmdist.compression.passes import layers as found_layers
from fmdist.compression.passes.base import TorchPass
from fmdist.compression.sensitivity_config import SensitivityConfig
from fmdist.training.checkpoint import weights_digest
from tests.contract.families import Family, find_family, pairs
from tests.contract.passes import MARK, README, cell, recorded, settings_of, subject_of, table

TORCH = sorted(kind for kind in component.kinds("passes") if isinstance(settings_of(kind), TorchPass))
EMBEDDINGS = ("bpr", "factorization_machine", "matrix_factorization")
"""Tables of vectors alone: there are no channels and no matrices to make smaller."""


@pytest.fixture(scope="module")
def built() -> dict[str, Any]:
    return {}


@pytest.fixture
def family(request: pytest.FixtureRequest, built: dict[str, Any], tmp_path_factory: Any) -> Family:
    task, model = request.param
    return find_family(task, model, tmp_path_factory.mktemp("data"), built)


@pytest.mark.slow
@pytest.mark.parametrize("family", pairs(), indirect=True, ids=lambda pair: "-".join(pair))
def test_a_pass_does_what_it_says_or_is_refused(family: Family, tmp_path: Path) -> None:
    subject = subject_of(family)
    kind_of_model = family.model_config.kind()
    for kind in TORCH:
        (tmp_path / kind).mkdir()
        found = cell(subject, kind, tmp_path / kind)
        if "refused" in found:
            assert found["refused"].startswith(f"compress.passes.{kind}")
            assert kind != "prune_weights"
            reasons = ("recurrent", "its outputs are the model's", "no BatchNorm")
            known = any(reason in found["refused"] for reason in reasons)
            assert known or kind_of_model in EMBEDDINGS, found["refused"]
        else:
            assert 0.05 < found["left"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("family", pairs(), indirect=True, ids=lambda pair: "-".join(pair))
def test_every_layer_is_measured_and_stays_as_it_was(family: Family) -> None:
    subject = subject_of(family)
    before = weights_digest(subject.export.module)
    few = SensitivityConfig(samples=32, weights=(0.5,), channels=(0.5,), bits=(8,))
    model = sensitivity.Model(subject.task, subject.export.example(), subject.splits, seed=0)
    record = sensitivity.measure(model, few)
    assert weights_digest(subject.export.module) == before
    layers = found_layers.with_weights(subject.export.module)
    assert record["layers"]
    assert {row["name"] for row in record["layers"]} <= layers.keys()
    assert all(row["drop"] is not None and row["error"] is not None for row in record["layers"])
    assert any(row["error"] > 0 for row in record["layers"])


def test_the_table_of_the_readme_is_what_was_measured() -> None:
    rows = recorded()
    assert {model for _, model in pairs()} == set(rows)
    assert all(set(cells) == set(component.kinds("passes")) for cells in rows.values())
    text = README.read_text(encoding="utf-8").split(MARK)[1]
    assert text.strip() == table(rows)
