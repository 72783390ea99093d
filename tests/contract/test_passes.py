"""No pass on the torch model leaves a family as it was without saying so; README's table was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fmdist import component
from fmdist.compression.passes.base import TorchPass
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
            known = "recurrent" in found["refused"] or "its outputs are the model's" in found["refused"]
            assert known or kind_of_model in EMBEDDINGS, found["refused"]
        else:
            assert 0.05 < found["left"] < 1


def test_the_table_of_the_readme_is_what_was_measured() -> None:
    rows = recorded()
    assert {model for _, model in pairs()} == set(rows)
    assert all(set(cells) == set(component.kinds("passes")) for cells in rows.values())
    text = README.read_text(encoding="utf-8").split(MARK)[1]
    assert text.strip() == table(rows)
