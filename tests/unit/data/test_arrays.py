from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fmdist.contracts import Draw
from fmdist.data.arrays import Arrays
from fmdist.data.inputs import read_inputs
from fmdist.data.preprocess import Preprocess
from fmdist.errors import DataError

X, Y = np.arange(24.0).reshape(4, 2, 3), np.array([0, 1, 2, 1])


def arrays(**changes: Any) -> Arrays:
    return Arrays(**{"train": (X, Y), "validation": (X[:3], Y[:3]), "test": (X[2:], Y[2:]), **changes})


def test_rows_stay_what_and_where_they_are() -> None:
    splits = arrays().build()
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [4, 3, 2]
    batch = splits.test.__getitems__(Draw(0, np.array([1, 0])))
    assert torch.equal(batch["input"], torch.from_numpy(X[[3, 2]]).float())
    assert batch["target"].tolist() == [1, 2]
    (item,) = splits.spec.inputs
    assert (item.name, item.shape, item.dtype) == ("input", (2, 3), "float32")
    assert splits.spec.target.names == ("0", "1", "2")
    assert splits.spec.counts == (1, 2, 1)
    assert Preprocess.from_json(splits.preprocess.to_json()) == splits.preprocess


def test_ids_and_values() -> None:
    ids = torch.tensor([[1, 2], [3, 9]])
    splits = Arrays((ids, [0.5, 1]), (ids, [0, 1]), (ids, [0, 1]), "regression", ["price"]).build()
    (item,) = splits.spec.inputs
    assert (item.dtype, item.size) == ("int64", 10)
    assert (splits.spec.target.kind, splits.spec.target.names) == ("value", ("price",))
    assert splits.train.targets.tolist() == [[0.5], [1.0]]
    with pytest.raises(DataError, match="ids that the model doesn't know"):
        splits.preprocess(np.array([[1, 10]]))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"train": (X.astype(np.uint8), Y)}, "got 'uint8'"),
        ({"train": (X, Y[:3])}, "got '4 inputs, 3 targets'"),
        ({"test": (X[:, :1], Y)}, "another shape than in train"),
        ({"test": (X * np.nan, Y)}, "not finite"),
        ({"test": (X, Y - 1)}, "aren't classes"),
        ({"test": (X, Y + 0.5)}, "aren't classes"),
        ({"test": (X, Y + 1)}, "classes that the training split doesn't have"),
        ({"test": X}, "not a pair"),
        ({"names": ["a"]}, "not one name for each target"),
        ({"task": "ranking"}, "allowed: classification, regression"),
    ],
)
def test_what_can_not_be_used_is_named(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        arrays(**changes).build()


def test_npy_files_are_read_for_predictions(tmp_path: Path) -> None:
    preprocess = arrays().build().preprocess
    np.save(tmp_path / "rows.npy", X[:2])
    names, rows = read_inputs([tmp_path / "rows.npy"], [], preprocess)
    assert names == [f"{tmp_path}/rows.npy:0", f"{tmp_path}/rows.npy:1"]
    np.testing.assert_array_equal(rows, X[:2])
    np.save(tmp_path / "other.npy", X[0])
    (tmp_path / "junk.npy").write_text("junk")
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    for name, problem in (("other", "wrong shape"), ("junk", "not a .npy file"), ("objects", "not a .npy")):
        with pytest.raises(DataError, match=problem):
            read_inputs([tmp_path / f"{name}.npy"], [], preprocess)
