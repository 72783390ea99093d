from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from fmdist.data import table
from fmdist.data.inputs import read_inputs
from fmdist.data.preprocess import TablePreprocess
from fmdist.data.splits import DataSplits
from fmdist.errors import DataError

LENIENT = {"max_bad_share": 0.5, "duplicates": "keep"}


def write(path: Path, header: str, rows: list[str]) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def config(path: Path, **fields: Any) -> table.Config:
    values = {"path": str(path), "target": "y", "clean": LENIENT} | fields
    return table.Config.model_validate(values)


def rows(count: int = 20) -> list[str]:
    return [f"{i}.5,{'red' if i % 3 else 'blue'},{'yes' if i % 2 else 'no'}" for i in range(count)]


def all_rows(data: DataSplits) -> list[Any]:
    return [row for split in (data.train, data.validation, data.test) for row in split.raw(_all(len(split)))]


def _all(size: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.arange(size)


def test_columns_are_inferred(tmp_path: Path) -> None:
    raw = config(write(tmp_path / "t.csv", "a,b,y", rows())).read()
    assert isinstance(raw.preprocess, TablePreprocess)
    assert [(c.name, c.categories) for c in raw.preprocess.columns] == [("a", None), ("b", ())]
    assert raw.target.names == ("no", "yes")
    assert raw.values.take(np.array([3]))[0].tolist() == (3.5, "blue")
    assert raw.sources[3].endswith("t.csv:4")


def test_csv_and_parquet_are_the_same_data(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "a,b,y", rows())
    columns = zip(*(row.split(",") for row in rows()), strict=True)
    a, b, y = (list(column) for column in columns)
    arrow = pa.table({"a": [float(x) for x in a], "b": pa.array(b).dictionary_encode(), "y": y})
    parquet.write_table(arrow, tmp_path / "t.parquet")
    from_csv, from_parquet = config(path).build(0), config(tmp_path / "t.parquet").build(0)
    assert from_csv.record == from_parquet.record
    assert from_csv.preprocess == from_parquet.preprocess


def test_categories_are_fitted_on_the_training_split_only(tmp_path: Path) -> None:
    rare = [*rows(60), "1,only-once,no"]
    path = write(tmp_path / "t.csv", "a,b,y", rare)
    for seed in range(30):
        data = config(path).build(seed)
        assert isinstance(data.preprocess, TablePreprocess)
        trained = "only-once" in {row["b"] for row in data.train.raw(_all(len(data.train)))}
        categories = data.preprocess.columns[1].categories
        assert categories == (("blue", "only-once", "red") if trained else ("blue", "red"))
        if not trained:
            break
    else:
        pytest.fail("no seed left the rare category out of the training split")


def test_columns_can_be_overridden(tmp_path: Path) -> None:
    lines = [f"{i % 3},{i},x{i},{i % 2}" for i in range(12)]
    path = write(tmp_path / "t.csv", "code,id,name,y", lines)
    data = config(path, categorical=["code"], drop=["id", "name"]).build(0)
    assert isinstance(data.preprocess, TablePreprocess)
    assert data.preprocess.columns[0].categories == ("0", "1", "2")
    assert data.preprocess.ignored == ("y", "id", "name")


def test_missing_cells(tmp_path: Path) -> None:
    lines = [*rows(20), "NA,red,yes", "7,,no", "8,red,"]
    data = config(write(tmp_path / "t.csv", "a,b,y", lines)).build(0)
    assert data.record["non_finite"] == 1
    assert data.record["quarantined"] == 1
    assert [row["b"] for row in all_rows(data) if row["a"] == 7] == [""]


def test_bad_rows_are_quarantined_by_number(tmp_path: Path) -> None:
    lines = [*rows(10), "abc,red,yes", "1,2", "", "3,red,no,4", "5,blue,no"]
    raw = config(write(tmp_path / "t.csv", "a,b,y", lines), numeric=["a"]).read()
    where = {Path(record.source).name: record.reason for record in raw.bad}
    assert where == {
        "t.csv:11": "column 'a': 'abc' is not a number",
        "t.csv:12": "2 cells where the header has 3",
        "t.csv:13": "4 cells where the header has 3",
    }
    assert raw.sources[-1].endswith("t.csv:14")
    assert raw.values.take(np.array([10]))[0].tolist() == (5.0, "blue")


@pytest.mark.parametrize("cell", ["", "abc", "inf", "nan", "1e300", "1_0"])
def test_values_that_are_no_finite_numbers_are_quarantined(cell: str, tmp_path: Path) -> None:
    lines = [*(f"{i},{i * i / 10}" for i in range(20)), f"20,{cell}"]
    raw = config(write(tmp_path / "t.csv", "a,y", lines), target_kind="value").read()
    assert [record.source.rpartition(":")[2] for record in raw.bad] == ["21"]
    assert "is not a finite number" in raw.bad[0].reason
    assert raw.targets.dtype == np.float32
    assert raw.targets[3].tolist() == pytest.approx([0.9])


def test_labels_are_zeros_and_ones(tmp_path: Path) -> None:
    lines = [*(f"{i},{i % 2},{'true' if i % 3 else 'False'}" for i in range(20)), "20,2,true"]
    path = write(tmp_path / "t.csv", "a,u,v", lines)
    raw = config(path, target=["u", "v"], target_kind="labels").read()
    assert raw.target.names == ("u", "v")
    assert raw.targets[:3].tolist() == [[0, 0], [1, 1], [0, 1]]
    assert [record.reason for record in raw.bad] == ["column 'u': '2' is neither 0 nor 1"]


def test_numeric_classes_are_in_numeric_order(tmp_path: Path) -> None:
    lines = [f"{i},{(i % 3) * 5}" for i in range(30)]
    raw = config(write(tmp_path / "t.csv", "a,y", lines)).read()
    assert raw.target.names == ("0", "5", "10")


@pytest.mark.parametrize(
    ("header", "lines", "fields", "problem"),
    [
        ("a,b,y", rows(), {"target": "z"}, r"data\.target: no such column, got 'z'; allowed: a, b, y"),
        ("a,colour,y", rows(), {"drop": ["color"]}, "Did you mean 'colour'"),
        ("a,a,y", rows(), {}, "there more than once, got 'a'"),
        ("a,,y", rows(), {}, "a column has no name"),
        ("a,b,y", [], {}, "the table has no rows"),
        ("a,b,y", rows(), {"target": ["y", "b"]}, "a class is in one column"),
        ("a,b,y", rows(), {"drop": ["y"]}, r"data\.drop: the column is already in data\.target"),
        ("a,b,y", rows(), {"drop": ["a", "b"]}, "no column is left"),
        ("a,b,y", rows(), {"target": "a"}, "20 distinct values in 20 rows.*target_kind to value"),
        ("a,b,y", rows(), {"max_categories": 1}, "column 'b' has 2 categories, such as 'blue'"),
        ("a,b,y", [f"{i},,{i % 2}" for i in range(20)], {}, "all cells of a column are missing, got 'b'"),
        ("a,b,y", ["1,2", "3,4"], {"clean": {}}, "2 of 2 records are bad"),
        ("a,b,y", [f"{i},x,one" for i in range(20)], {}, "all rows are of one class"),
        ("a,y", [*(f"{i},no" for i in range(20)), "21,yes"], {}, "class 'yes' has too few rows"),
    ],
)
def test_unusable_tables_say_why(
    header: str, lines: list[str], fields: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    path = write(tmp_path / "t.csv", header, lines)
    with pytest.raises(DataError, match=problem):
        config(path, **fields).build(0)


def test_numbers_that_are_told_to_be_categories_have_the_same_limit(tmp_path: Path) -> None:
    lines = [f"{i},{i % 2}" for i in range(20)]
    path = write(tmp_path / "t.csv", "a,y", lines)
    with pytest.raises(DataError, match="column 'a' has 20 categories, such as '0'"):
        config(path, categorical=["a"], max_categories=10).build(0)


@pytest.mark.parametrize(
    ("name", "content"),
    [("t.csv", b""), ("t.csv", b"a,y\n\xff\xfe,1\n"), ("t.parquet", b"no parquet"), ("t.parquet", b"")],
)
def test_unreadable_files_are_named(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=name):
        config(tmp_path / name).build(0)


def test_columns_of_lists_are_refused_by_name(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"a": [[1], [2]], "y": [0, 1]}), tmp_path / "t.parquet")
    with pytest.raises(DataError, match="column 'a' holds neither numbers nor text"):
        config(tmp_path / "t.parquet").build(0)


def test_a_byte_order_mark_and_another_delimiter(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    text = "\n".join(["a;b;y", *(row.replace(",", ";") for row in rows())])
    path.write_text(text, encoding="utf-8-sig")
    data = config(path, delimiter=";").build(0)
    names, raw = read_inputs([path], [], data.preprocess)
    assert len(names) == len(raw) == 20


@pytest.fixture
def fitted(tmp_path: Path) -> TablePreprocess:
    data = config(write(tmp_path / "train.csv", "a,b,y", rows())).build(0)
    assert isinstance(data.preprocess, TablePreprocess)
    return data.preprocess


def test_inputs_are_rows_by_name_in_any_column_order(fitted: TablePreprocess, tmp_path: Path) -> None:
    path = write(tmp_path / "new.csv", "y,b,a", ["?,red,1", "?,blue,2"])
    names, raw = read_inputs([path, path], [], fitted)
    assert names == [f"{path}:1", f"{path}:2"] * 2
    assert [row.tolist() for row in raw[:2]] == [(1.0, "red"), (2.0, "blue")]
    assert fitted(raw)["features"].shape == (4, 3)


def test_an_unseen_category_is_said(
    fitted: TablePreprocess, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _, raw = read_inputs([write(tmp_path / "new.csv", "a,b", ["1,green"])], [], fitted)
    assert fitted(raw)["features"][0, 1:].tolist() == [0, 0]
    assert "'green'" in caplog.text


@pytest.mark.parametrize(
    ("header", "row", "problem"),
    [
        ("a", "1", r"new\.csv: no such column, got 'b'"),
        ("a,b,c", "1,red,2", r"new\.csv: a column that the training data didn't have, got 'c'"),
        ("a,b", "x,red", r"new\.csv:1: column 'a' needs a finite number, got 'x'"),
        ("a,b", ",red", r"new\.csv:1: column 'a' needs a finite number, got ''"),
        ("a,b", "inf,red", r"new\.csv:1: column 'a' needs a finite number, got 'inf'"),
        ("a,b", "1,red,2", r"new\.csv:1: 3 cells where the header has 2"),
    ],
)
def test_inputs_that_do_not_fit_name_file_and_row(
    header: str, row: str, problem: str, fitted: TablePreprocess, tmp_path: Path
) -> None:
    path = write(tmp_path / "new.csv", header, [row])
    with pytest.raises(DataError, match=problem):
        read_inputs([path], [], fitted)
