"""Interactions: MovieLens' layouts, bad ratings, both ways to hold out, negatives, ids and side features."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fmdist.contracts import Draw
from fmdist.data.id_inputs import read_ids
from fmdist.data.id_preprocess import IdPreprocess
from fmdist.data.inputs import read_inputs
from fmdist.data.interactions import Config
from fmdist.data.preprocess import Preprocess
from fmdist.data.splits import DataSplits
from fmdist.errors import DataError

USERS, ITEMS = 12, 15
CLEAN = {"max_bad_share": 0.5}


def met(user: int) -> list[int]:
    """Return the items of a user, in the order of their time."""
    return [(user * 2 + step * 4) % ITEMS for step in range(4 + user % 3)]


def write(file: Path, separator: str = ",", header: bool = True) -> dict[str, Any]:
    lines = ["user,item,rating,when".replace(",", separator)] if header else []
    rows = [
        (f"u{user}", f"i{item}", 1 + (user * item) % 5, 100 + step)
        for user in range(USERS)
        for step, item in enumerate(met(user))
    ]
    # Later first, so that the time and not the file decides what is last.
    lines += [separator.join(map(str, row)) for row in reversed(rows)]
    file.write_text("\n".join(lines) + "\n")
    return {"path": file, "timestamp": "when"}


@pytest.fixture
def values(tmp_path: Path) -> dict[str, Any]:
    return write(tmp_path / "log.csv")


def make(**fields: Any) -> Config:
    return Config.model_validate(fields)


def everything(split: Any, epoch: int = 0) -> dict[str, np.ndarray[Any, Any]]:
    batch = split.__getitems__(Draw(epoch, np.arange(len(split))))
    return {name: value.numpy() for name, value in batch.items()}


def features(folder: Path) -> dict[str, Any]:
    rows = ["item,genre,year"] + [f"i{n},{'|'.join('ABC'[: n % 4])},{1990 + n % 2}" for n in range(ITEMS + 3)]
    (folder / "items.csv").write_text("\n".join(rows) + "\n")
    return {
        "item_features": {"path": folder / "items.csv", "id": "item", "columns": ["year"], "lists": ["genre"]}
    }


@pytest.mark.parametrize("separator", ["\t", "::"])
def test_movielens_files_are_read(tmp_path: Path, separator: str) -> None:
    write(tmp_path / "u.data", separator, header=False)
    raw = make(path=tmp_path / "u.data", layout="movielens").read()
    expected = make(**write(tmp_path / "log.csv")).read()
    assert np.array_equal(raw.values.take(np.arange(50)), expected.values.take(np.arange(50)))
    assert np.array_equal(raw.targets, expected.targets)
    assert raw.sources[0] == f"{tmp_path / 'u.data'}:1"


def test_a_file_of_another_layout_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "u.data")
    with pytest.raises(DataError, match="no line has four cells"):
        make(path=tmp_path / "u.data", layout="movielens").read()


def test_tab_separated_files_and_other_names_are_read(tmp_path: Path) -> None:
    write(tmp_path / "log.tsv", "\t")
    file = tmp_path / "log.tsv"
    file.write_text(file.read_text().replace("user", "who", 1))
    assert len(make(path=file, user="who").read().values) == 60
    with pytest.raises(DataError, match="no such column, got 'user'"):
        make(path=file).read()


@pytest.mark.parametrize(
    ("cell", "reason"), [("6", "is not in [1, 5]"), ("good", "is not a number"), ("", "is not a")]
)
def test_a_rating_out_of_range_goes_to_quarantine(tmp_path: Path, cell: str, reason: str) -> None:
    values = write(tmp_path / "log.csv")
    with values["path"].open("a") as file:
        file.write(f"u1,i1,{cell},7\n")
    config = make(**values, rating_range=(1, 5), clean=CLEAN)
    data = config.build(0, tmp_path / "quarantine.jsonl")
    record = json.loads((tmp_path / "quarantine.jsonl").read_text())
    assert record["source"].endswith("log.csv:61")
    assert reason in record["reason"]
    assert data.spec.target.range == (1.0, 5.0)
    with pytest.raises(DataError, match="1 of 61 records are bad"):
        config.model_copy(update={"clean": make(**values).clean}).build(0)


def test_ratings_are_pairs_with_values(values: dict[str, Any]) -> None:
    data = make(**values).build(0)
    assert [item.name for item in data.spec.inputs] == ["user", "item"]
    assert data.spec.target.names == ("rating",)
    train = everything(data.train)
    assert (train["user"] > 0).all()
    assert (train["item"] > 0).all()
    assert train["target"].shape == (len(data.train), 1)
    assert data.spec.moments[0][0] == pytest.approx(train["target"].mean())
    known = set(data.train.raw(np.arange(len(data.train)))["user"])
    test, raw = everything(data.test), data.test.raw(np.arange(len(data.test)))
    assert [user == 0 for user in test["user"]] == [name not in known for name in raw["user"]]


def test_leave_one_out_takes_the_last_two_by_time(values: dict[str, Any]) -> None:
    data = make(**values, holdout="leave_one_out").build(0)
    for split, place in ((data.test, -1), (data.validation, -2)):
        raw = split.raw(np.arange(len(split)))
        assert {(user, item) for user, item in raw} == {(f"u{u}", f"i{met(u)[place]}") for u in range(USERS)}


def test_leave_one_out_keeps_users_with_little_for_training(tmp_path: Path) -> None:
    values = write(tmp_path / "log.csv")
    with values["path"].open("a") as file:
        file.write("new,i1,3,7\nnew,i2,3,8\nnew,i1,4,9\n")
    data = make(**values, holdout="leave_one_out").build(0)
    assert data.record["duplicates"] == 1
    assert {name: size for name, size in data.record["sizes"].items()} == {
        "train": 60 - 2 * USERS + 2,
        "validation": USERS,
        "test": USERS,
    }
    values["path"].write_text("user,item,rating,when\na,x,1,1\na,y,1,2\n")
    with pytest.raises(DataError, match="no user has enough interactions"):
        make(**values, holdout="leave_one_out").build(0)


@pytest.fixture
def implicit(values: dict[str, Any], tmp_path: Path) -> DataSplits:
    more = features(tmp_path)
    return make(**values, **more, feedback="implicit", holdout="leave_one_out", negatives=40).build(7)


def test_negatives_are_items_that_the_user_has_not_met(implicit: DataSplits) -> None:
    train = everything(implicit.train)
    met_in_training = set(zip(train["user"].tolist(), train["item"].tolist(), strict=True))
    size = implicit.spec.target.size
    assert train["negative"].shape == (len(implicit.train), 40)
    drawn: dict[int, set[int]] = {}
    for user, negatives in zip(train["user"].tolist(), train["negative"].tolist(), strict=True):
        assert not {(user, negative) for negative in negatives} & met_in_training
        drawn.setdefault(user, set()).update(negatives)
    for user, found in drawn.items():
        assert found == {item for item in range(1, size + 1) if (user, item) not in met_in_training}


def test_negatives_are_uniform(implicit: DataSplits) -> None:
    negatives = np.concatenate([everything(implicit.train, epoch)["negative"][0] for epoch in range(100)])
    counts = np.bincount(negatives)
    counts = counts[counts > 0]
    # 4,000 draws: five standard deviations of a count around its mean.
    assert np.abs(counts - counts.mean()).max() < 5 * counts.mean() ** 0.5


def test_negatives_are_keyed_by_seed_epoch_and_sample(values: dict[str, Any]) -> None:
    def build(seed: int) -> Any:
        return make(**values, feedback="implicit", holdout="leave_one_out").build(seed).train

    train = build(1)
    whole = everything(train)["negative"]
    part = train.__getitems__(Draw(0, np.array([5, 2])))["negative"].numpy()
    assert np.array_equal(part, whole[[5, 2]])
    assert np.array_equal(everything(build(1))["negative"], whole)
    assert not np.array_equal(everything(train, epoch=1)["negative"], whole)
    assert not np.array_equal(everything(build(2))["negative"], whole)


def test_an_evaluation_knows_what_was_met_before(implicit: DataSplits) -> None:
    names = implicit.spec.target.names
    for split, held in ((implicit.validation, 2), (implicit.test, 1)):
        batch, raw = everything(split), split.raw(np.arange(len(split)))
        assert set(batch) == {"user", "seen", "target", "index"}
        for row, (user,) in enumerate(raw):
            items = [f"i{item}" for item in met(int(user[1:]))]
            seen = {names[position] for position in batch["seen"][row] if position >= 0}
            assert seen == set(items[:-held]) & set(names)
            assert names[batch["target"][row, 0]] == items[-held]


def test_predictions_leave_out_all_that_was_met(implicit: DataSplits) -> None:
    raw = np.array([("u3",), ("nobody",)], implicit.preprocess.dtype)  # type: ignore[attr-defined]
    batch = implicit.preprocess(raw)
    assert batch["user"].tolist()[1] == 0
    names = implicit.spec.target.names
    assert {names[n] for n in batch["seen"][0] if n >= 0} == {f"i{n}" for n in met(3)} & set(names)
    assert (batch["seen"][1] == -1).all()


def test_training_pairs_can_be_asked_like_a_test(implicit: DataSplits) -> None:
    plain = implicit.train.plain()
    pairs, asked = everything(implicit.train), everything(plain)
    assert np.array_equal(plain.targets, implicit.train.targets)
    assert np.array_equal(asked["target"][:, 0], pairs["item"] - 1)
    for row, user in enumerate(pairs["user"]):
        others = set((pairs["item"][pairs["user"] == user] - 1).tolist()) - {asked["target"][row, 0]}
        assert {item for item in asked["seen"][row].tolist() if item >= 0} == others


def test_items_that_training_never_saw_are_counted_and_not_ranked(tmp_path: Path) -> None:
    values = write(tmp_path / "log.csv")
    with values["path"].open("a") as file:
        file.write("u1,brand new,5,999\nu2,i1,5,999\nu2,i9,5,1000\n")
    data = make(**values, feedback="implicit", holdout="leave_one_out").build(0)
    assert data.record["cold"]["test"] == 1
    assert data.record["users"]["test"] == len(data.test) == USERS - 1
    assert "brand new" not in data.spec.target.names


def test_only_liked_items_are_positive(values: dict[str, Any]) -> None:
    every = make(**values, feedback="implicit")
    liked = make(**values, feedback="implicit", min_rating=4)
    ratings = make(**values).read().targets
    assert len(every.read().values) == 60
    assert len(liked.read().values) == int((ratings >= 4).sum()) < 60


def test_a_user_who_met_everything_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("user,item\na,x\na,y\nb,x\nb,y\nb,z\n")
    config = make(path=tmp_path / "log.csv", rating=None, feedback="implicit", holdout="leave_one_out")
    with pytest.raises(DataError, match=r"1 user\(s\) met every item"):
        config.build(0)


def test_side_features_become_inputs_and_tables(values: dict[str, Any], tmp_path: Path) -> None:
    data = make(**values, **features(tmp_path)).build(0)
    by_name = {item.name: item for item in data.spec.inputs}
    assert list(by_name) == ["user", "item", "item.year", "item.genre"]
    assert by_name["item.genre"].shape == (3,)
    assert by_name["item.genre"].size == 4
    assert by_name["item.year"].size == 3
    train = everything(data.train)
    names = data.train.raw(np.arange(len(data.train)))["item"]
    for row, name in enumerate(names):
        number = int(name[1:])
        assert [code for code in train["item.genre"][row] if code] == list(range(1, 1 + number % 4))
        assert train["item.year"][row] == 1 + number % 2
        assert data.spec.tables["item.genre"][train["item"][row]] == tuple(train["item.genre"][row])
        assert data.spec.tables["item.year"][train["item"][row]] == (train["item.year"][row],)


def test_an_item_without_ratings_still_has_its_features(values: dict[str, Any], tmp_path: Path) -> None:
    data = make(**values, **features(tmp_path)).build(0)
    raw = np.array([("u1", f"i{ITEMS + 2}"), ("u1", "unheard of")], [("user", object), ("item", object)])
    batch = data.preprocess(raw)
    assert batch["item"].tolist() == [0, 0]
    assert batch["item.year"].tolist() == [2, 0]
    assert batch["item.genre"].tolist() == [[1, 0, 0], [0, 0, 0]]


def test_negatives_bring_their_own_features(implicit: DataSplits) -> None:
    train = everything(implicit.train)
    table = np.array(implicit.spec.tables["item.genre"])
    assert np.array_equal(train["negative.genre"], table[train["negative"]])
    years = np.array(implicit.spec.tables["item.year"])[:, 0]
    assert np.array_equal(train["negative.year"], years[train["negative"]])


def test_feature_files_are_checked(values: dict[str, Any], tmp_path: Path) -> None:
    file = features(tmp_path)["item_features"]["path"]
    with pytest.raises(DataError, match="no such column, got 'yaer'"):
        make(**values, item_features={"path": file, "id": "item", "columns": ["yaer"]}).read()
    with pytest.raises(DataError, match="neither columns nor lists are chosen"):
        make(**values, item_features={"path": file, "id": "item"}).read()
    file.write_text(file.read_text() + "i1,A,1990\n")
    with pytest.raises(DataError, match="more than once, got 'i1'"):
        make(**values, item_features={"path": file, "id": "item", "columns": ["year"]}).read()


@pytest.mark.parametrize("feedback", ["ratings", "implicit"])
def test_preprocessing_survives_json(values: dict[str, Any], tmp_path: Path, feedback: str) -> None:
    data = make(**values, **features(tmp_path), feedback=feedback).build(0)
    again = Preprocess.from_json(json.loads(json.dumps(data.preprocess.to_json())))
    assert again == data.preprocess
    raw = data.test.raw(np.arange(len(data.test)))
    first, second = data.preprocess(raw), again(raw)
    assert set(first) >= {item.name for item in data.preprocess.inputs}
    assert all(np.array_equal(value, second[name]) for name, value in first.items())
    with pytest.raises(DataError, match="wrong columns or types"):
        again(np.zeros((2, 3), np.float64))


def test_users_and_pairs_are_read_for_predictions(
    values: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "ask.csv").write_text("item,user,why\ni1,u1,x\ni2,nobody,y\n")
    ratings = make(**values).build(0).preprocess
    with caplog.at_level(logging.WARNING):
        names, raw = read_inputs([tmp_path / "ask.csv"], [], ratings)
    assert names == [f"{tmp_path / 'ask.csv'}:1", f"{tmp_path / 'ask.csv'}:2"]
    assert raw.tolist() == [("u1", "i1"), ("nobody", "i2")]
    assert "1 user(s) were not in the training data, such as 'nobody'" in caplog.text
    ranking = make(**values, feedback="implicit").build(0).preprocess
    names, raw = read_inputs([tmp_path / "ask.csv"], ["u5"], ranking)
    assert names[0] == "u5"
    assert raw["user"].tolist() == ["u5", "u1", "nobody"]


def test_a_question_without_an_item_is_refused(values: dict[str, Any], tmp_path: Path) -> None:
    preprocess = make(**values).build(0).preprocess
    assert isinstance(preprocess, IdPreprocess)
    with pytest.raises(DataError, match="needs a user and an item"):
        read_ids([], ["u1"], preprocess)
    (tmp_path / "ask.csv").write_text("usr,item\nu1,i1\n")
    with pytest.raises(DataError, match="no such column, got 'user'"):
        read_ids([tmp_path / "ask.csv"], [], preprocess)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"rating": None}, "ratings need a column"),
        ({"min_rating": 3.0}, "min_rating is for implicit feedback"),
        ({"feedback": "implicit", "rating": None, "min_rating": 3.0}, "needs the ratings' column"),
        ({"rating_range": (5, 1)}, "must be"),
        ({"clean": {"outliers": "iqr"}}, "outliers are defined for tables"),
        ({"augment": {"rotate": 3}}, "no images to augment"),
    ],
)
def test_settings_that_do_not_fit_are_refused(values: dict[str, Any], fields: Any, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        make(**values, **fields)


def test_batches_are_tensors_of_ids(implicit: DataSplits) -> None:
    batch = implicit.train.__getitems__(Draw(0, np.array([1, 0])))
    assert all(value.dtype == torch.int64 for value in batch.values())
    assert batch["index"].tolist() == [1, 0]
