"""Transfer learning never lets weights meet inputs or targets of another meaning than they learned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fmdist.contracts import DataSpec, InputSpec, TargetSpec, Task
from fmdist.data.id_preprocess import IdPreprocess, Side
from fmdist.data.preprocess import Column, TablePreprocess
from fmdist.errors import CheckpointError
from fmdist.models import gru, matrix_factorization, mlp, text_cnn
from fmdist.stages.modules import Modules
from fmdist.tasks import multi_task, recommendation
from fmdist.training.checkpoint import weights_digest
from fmdist.training.layers import layers
from fmdist.training.meaning import meaning_of
from fmdist.training.run import build_task
from fmdist.training.transfer import Transfer
from fmdist.training.transfer_config import TransferConfig
from tests.unit.training.transfer_rig import ROW, classes, make, state, transfer, write_run

ITEMS = ("i1", "i2", "i3")


COLUMNS = TablePreprocess((Column("age"), Column("city", categories=("Bonn", "Kiel")), Column("income")))


@pytest.mark.parametrize(
    "columns",
    [
        (COLUMNS.columns[2], *COLUMNS.columns[:2]),
        (COLUMNS.columns[0], Column("city", categories=("Kiel", "Bonn")), COLUMNS.columns[2]),
        (*COLUMNS.columns[:2], Column("wealth")),
    ],
    ids=["another order", "other categories", "another column"],
)
def test_features_that_mean_something_else_are_refused(columns: tuple[Column, ...], tmp_path: Path) -> None:
    spec = classes("a", "b", "c", inputs=COLUMNS.inputs)
    source, _ = make(spec)
    write_run(tmp_path, TablePreprocess(columns))
    task, made = transfer(tmp_path, spec)
    before = weights_digest(task.roles()["model"])
    with pytest.raises(CheckpointError, match=r"'features' means something else.*skip: \['1.weight'\]"):
        made.initialize(lambda path: source, meaning_of(COLUMNS))
    assert weights_digest(task.roles()["model"]) == before
    task, made = transfer(tmp_path, spec, skip=["1.weight"])
    made.initialize(lambda path: source, meaning_of(COLUMNS))
    assert torch.equal(state(task)["4.weight"], state(source)["4.weight"])


def test_scales_of_the_same_features_may_differ(tmp_path: Path) -> None:
    spec = classes("a", "b", "c", inputs=COLUMNS.inputs)
    source, _ = make(spec)
    write_run(tmp_path, TablePreprocess((Column("age", 3.0, 2.0), *COLUMNS.columns[1:])))
    task, made = transfer(tmp_path, spec)
    made.initialize(lambda path: source, meaning_of(COLUMNS))
    assert torch.equal(state(task)["1.weight"], state(source)["1.weight"])


def test_users_and_items_that_are_others_are_refused(tmp_path: Path) -> None:
    items = Side("item", "item", ITEMS)
    ours, theirs = (
        IdPreprocess(Side("user", "user", tuple(f"{letter}{n}" for n in range(4))), items) for letter in "ux"
    )
    spec = DataSpec(ours.inputs, TargetSpec("value", ("rating",)), 6, (), ((3.0, 1.0),))
    fitting = recommendation.Config()
    write_run(tmp_path, theirs)
    tasks = [build_task(fitting, seed, spec, Modules(matrix_factorization.Config())) for seed in (0, 1)]
    made = Transfer(TransferConfig(init_from=tmp_path), tasks[0], lambda spec: tasks[0], 0)
    with pytest.raises(CheckpointError, match="'user' means something else"):
        made.initialize(lambda path: tasks[1], meaning_of(ours))
    assert made.initialize(lambda path: tasks[1], meaning_of(theirs))["loaded"]


def test_heads_of_other_targets_start_fresh(tmp_path: Path) -> None:
    def of(*names: str, **heads: dict[str, Any]) -> Task:
        spec = DataSpec(ROW, TargetSpec("labels", names), 6, (3,) * len(names))
        config = multi_task.Config.model_validate({"features": 4, "heads": heads})
        return build_task(config, len(names[0]), spec, Modules(mlp.Config(hidden=(4,))))

    def moved(source: Task, task: Task) -> dict[str, Any]:
        made = Transfer(TransferConfig(init_from=tmp_path), task, lambda spec: task, 0)
        return made.initialize(lambda path: source)

    write_run(tmp_path, TablePreprocess((Column("a"),)))
    shifted = of("bb", "c")
    record = moved(of("a", "bb"), shifted)
    assert record["fresh_head"] == [
        f"heads.{n}_head.{what}" for n in ("bb", "c") for what in ("weight", "bias")
    ]
    one, other = of("a", "bb"), of("a", "bb", bb={"targets": ("bb",)}, a={"targets": ("a",)})
    assert moved(one, other)["fresh_head"] == []
    row = torch.randn(3, 5)
    with torch.no_grad():
        torch.testing.assert_close(other.roles()["model"](row), one.roles()["model"](row))


def test_what_stands_side_by_side_is_one_layer() -> None:
    text = classes("a", "b", inputs=(InputSpec("text", (None,), "int64", 9, 8),))
    found = [len(layer) for layer in layers(text_cnn.Config(widths=(2, 3, 4)).build(text, 2))]
    assert found == [1, 6, 2], "embedding, three convolutions, head"
    both = gru.Config(layers=2, bidirectional=True, hidden=4, embedding=4).build(text, 2)
    assert [len(layer) for layer in layers(both)] == [1, 8, 8, 2]
    one = gru.Config(layers=2, hidden=4, embedding=4).build(text, 2)
    assert [len(layer) for layer in layers(one)] == [1, 4, 4, 2]
    spec = DataSpec(ROW, TargetSpec("labels", ("a", "b", "c")), 6, (3, 3, 3))
    task = build_task(multi_task.Config(), 0, spec, Modules(mlp.Config(hidden=(4, 4))))
    assert [len(layer) for layer in layers(task.roles()["model"])] == [2, 2, 2, 6]
