"""Our recommendation against scikit-surprise: the same baseline and model, the same error after training."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import surprise
import torch
from numpy.typing import NDArray

from fmdist import stages
from fmdist.contracts import Draw
from fmdist.data.interactions import Config
from fmdist.data.splits import DataSplits
from fmdist.models import matrix_factorization
from fmdist.stages.modules import Modules
from fmdist.tasks import recommendation

PEOPLE = 300
"""Of MovieLens 100K's 943, so that this takes seconds."""
FACTORS = 50
EPOCHS = 40
TOLERANCE = 0.01
"""Of the RMSE after training; another seed moves scikit-surprise's by 0.002."""

Data = dict[str, Any]


@pytest.fixture(scope="module")
def section(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """Return the recipe's data section for the ratings of some people; the package recbole carries them."""
    package = importlib.util.find_spec("recbole")
    assert package is not None, "pip install --no-deps recbole==1.2.1"
    assert package.origin is not None
    source = Path(package.origin).parent / "dataset_example/ml-100k/ml-100k.inter"
    lines = [line for line in source.read_text().splitlines()[1:] if int(line.split("\t")[0]) <= PEOPLE]
    path = tmp_path_factory.mktemp("movielens") / "u.data"
    path.write_text("\n".join(lines) + "\n")
    split = {"train": 0.8, "validation": 0.1, "test": 0.1}
    return {"path": str(path), "layout": "movielens", "rating_range": (1.0, 5.0), "split": split}


@pytest.fixture(scope="module")
def data(section: Data) -> DataSplits:
    return Config.model_validate(section).build(0)


def rows(split: Any) -> list[tuple[str, str, float]]:
    raw = split.raw(np.arange(len(split)))
    return [(user, item, float(r)) for (user, item), r in zip(raw, split.targets[:, 0], strict=True)]


def fitted(peer: Any, data: DataSplits) -> Any:
    """Return scikit-surprise's algorithm, trained on our training split."""
    dataset = surprise.Dataset(surprise.Reader(rating_scale=(1, 5)))
    return peer.fit(dataset.construct_trainset([(*row, None) for row in rows(data.train)]))


def predicted(peer: Any, data: DataSplits) -> NDArray[np.float64]:
    return np.array([prediction.est for prediction in peer.test(rows(data.test))])


def test_the_bias_baseline_is_the_peers(data: DataSplits) -> None:
    task = recommendation.Config().build(data.spec, Modules(None))
    expected = predicted(fitted(surprise.BaselineOnly(verbose=False), data), data)
    assert task.baseline(data.train, data.test)[:, 0] == pytest.approx(expected, abs=1e-5)


def test_the_peers_weights_give_the_peers_predictions(data: DataSplits) -> None:
    """Names that training never saw are among the test's: both then leave out what they don't know."""
    peer = fitted(surprise.SVD(n_factors=FACTORS, n_epochs=5, random_state=0), data)
    task = recommendation.Config().build(data.spec, Modules(matrix_factorization.Config(factors=FACTORS)))
    state = {name: torch.zeros_like(value) for name, value in task.roles()["model"].state_dict().items()}
    state |= {"mean": torch.tensor(peer.trainset.global_mean), "std": torch.tensor(1.0)}
    known = {"user": peer.trainset.to_inner_uid, "item": peer.trainset.to_inner_iid}
    weights = {"user": (peer.pu, peer.bu), "item": (peer.qi, peer.bi)}
    for name, (vectors, biases) in weights.items():
        side = getattr(data.preprocess, name)
        inner = [known[name](raw) for raw in side.names]
        state[f"model.vectors.{name}.weight"][1:] = torch.from_numpy(vectors[inner])
        state[f"model.biases.{name}.weight"][1:] = torch.from_numpy(biases[inner])[:, None]
    task.roles()["model"].load_state_dict(state)
    batch = data.test.__getitems__(Draw(0, np.arange(len(data.test))))
    assert (batch["item"] == 0).any()
    with torch.no_grad():
        ratings = task.served(task.roles())(batch["user"], batch["item"])[:, 0].clamp(1, 5)
    assert ratings.numpy() == pytest.approx(predicted(peer, data), abs=1e-5)


@pytest.mark.slow
def test_training_reaches_the_peers_error(section: Data, data: DataSplits, tmp_path: Path) -> None:
    """The peer steps on single ratings, we on 256 with 256 times the rate.

    Its L2 term falls on the ids of each rating, our weight decay on all ids at every step: for an average
    user they are the same.
    """
    rate, l2, batch = 0.005, 0.08, 256
    peer = fitted(surprise.SVD(FACTORS, EPOCHS, lr_all=rate, reg_all=l2, random_state=0), data)
    expected = np.sqrt(np.square(predicted(peer, data) - data.test.targets[:, 0]).mean())
    trained = stages.train(
        {
            "name": "parity",
            "seed": 0,
            "data": {"kind": "interactions", **section, "rating_range": [1, 5]},
            "model": {"kind": "matrix_factorization", "factors": FACTORS},
            "task": {"kind": "recommendation"},
            "train": {
                "epochs": EPOCHS,
                "batch_size": batch,
                "optimizer": "SGD",
                "lr": rate * batch / 2,  # the squared error's derivative has a factor 2 that theirs hasn't
                "weight_decay": 2 * l2 / PEOPLE,
                "evaluate_every_epochs": EPOCHS,
                "threads": 1,
                "trackers": [],
            },
        },
        output=tmp_path / "run",
    )
    assert trained.metrics["rmse"] == pytest.approx(expected, abs=TOLERANCE)
    assert trained.metrics["rmse"] < trained.baseline["rmse"] - TOLERANCE
