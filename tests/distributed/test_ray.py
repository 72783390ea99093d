"""Training on a real Ray cluster: workers that are lost, signals, and what is refused."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmdist import storage
from tests.distributed.clusters import processes, until
from tests.distributed.rig import records
from tests.integration.command_line import FMDIST

pytestmark = pytest.mark.slow

RECIPE = """\
name: two
seed: 1
data: {kind: digits}
model: {kind: cnn, channels: [8, 16], blocks: 1, norm: group, dropout: 0.2}
task: {kind: classification}
train: {epochs: EPOCHS, lr: 2e-3, threads: 1, trackers: [], log_every_steps: 5, checkpoint: {every_steps: 5}}
scaling: {workers: 2, backoff_seconds: 0.1}
"""


@pytest.fixture(autouse=True)
def leaves_no_process() -> Iterator[None]:
    before = processes()
    yield
    for _ in range(600):
        left = processes().keys() - before.keys()
        if not left:
            return
        time.sleep(0.1)
    pytest.fail(f"left running: {[processes().get(number) for number in left]}")


def start(folder: Path, *words: str, epochs: int = 3) -> subprocess.Popen[str]:
    (folder / "two.yaml").write_text(RECIPE.replace("EPOCHS", str(epochs)))
    return subprocess.Popen(
        [FMDIST, "train", "two.yaml", *words],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def last_weights(run: Path) -> bytes:
    return (sorted((run / "checkpoints").iterdir())[-1] / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two workers to which nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    code, out, err = ended(start(folder, epochs=12))
    assert code == 0, err
    assert "test split" in out
    run = folder / "runs/two"
    record = storage.read_json(run / "run.json")
    assert (record["status"], record["epoch"]) == ("finished", 12)
    first, second = record["workers"].pop("held")["model"]
    assert first == second == {"weights": first["updated"], "updated": first["updated"]}
    hosts = [socket.gethostname()] * 2
    assert record["workers"] == {"count": 2, "strategy": "ddp", "hosts": hosts, "by_worker": []}
    assert not list(run.glob(".ray-*"))
    return run


@pytest.mark.sweep
def test_a_killed_worker_costs_no_more_than_an_interval(undisturbed: Path, tmp_path: Path) -> None:
    before = processes()
    process = start(tmp_path, epochs=12)
    checkpoints = tmp_path / "runs/two/checkpoints"
    until(lambda: len(list(checkpoints.glob("step-*"))) >= 2, process)
    trained = [
        number
        for number, line in processes().items()
        if number not in before and line.startswith("ray::RayTrainWorker")
    ]
    assert len(trained) == 2
    os.kill(trained[1], signal.SIGKILL)
    code, _, err = ended(process)
    assert code == 0, err
    assert "Going on from the newest checkpoint" in err
    assert last_weights(tmp_path / "runs/two") == last_weights(undisturbed)
    assert records(tmp_path / "runs/two") == records(undisturbed)


@pytest.mark.sweep
def test_a_signal_saves_and_one_worker_goes_on(undisturbed: Path, tmp_path: Path) -> None:
    process = start(tmp_path, epochs=12)
    run = tmp_path / "runs/two"
    until(lambda: len(list((run / "checkpoints").glob("step-*"))) >= 2, process)
    process.send_signal(signal.SIGTERM)
    begun = time.monotonic()
    code, _, err = ended(process)
    assert code == 143, err
    assert err.splitlines()[-1].startswith("error: interrupted by signal 15. Saved ")
    assert time.monotonic() - begun < 60
    record = storage.read_json(run / "run.json")
    assert record["status"] == "interrupted"
    assert 0 < record["step"] < 12 * 20
    code, _, err = ended(start(tmp_path, "scaling.workers=1", epochs=12))
    assert code == 0, err
    ours, theirs = records(run)[-1], records(undisturbed)[-1]
    assert ours["step"] == theirs["step"]
    assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.02)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["scaling.workers=4096"], "scaling.workers: the cluster hasn't what the workers need: 4096 CPU"),
        (["scaling.gpus_per_worker=1"], "the cluster hasn't what the workers need"),
        (["--address", "127.0.0.1:1"], "--address: no Ray cluster answers there"),
        (["train.batch_size=7"], "don't divide the global batch"),
    ],
    ids=["workers", "gpus", "address", "batch"],
)
def test_what_can_not_be_had_is_refused(words: list[str], said: str, tmp_path: Path) -> None:
    code, out, err = ended(start(tmp_path, *words))
    assert (code, out) == (2, ""), err
    (error,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert said in error
    assert not (tmp_path / "runs/two/run.json").exists()


@pytest.mark.sweep
def test_an_error_of_a_worker_is_told_as_it_is_and_not_tried_again(tmp_path: Path) -> None:
    code, out, err = ended(start(tmp_path, "train.lr=1e30", "train.optimizer=SGD"))
    assert (code, out) == (1, "")
    assert "is not finite" in err.splitlines()[-1]
    assert "Going on" not in err
    assert storage.read_json(tmp_path / "runs/two/run.json")["status"] == "failed"
