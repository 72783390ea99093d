"""Machines that come and go while a run trains, and a worker that hangs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fmdist import storage
from tests.distributed.clusters import until
from tests.distributed.head import RAY, Head, below, head
from tests.distributed.rig import records
from tests.integration.command_line import FMDIST

pytestmark = [pytest.mark.slow, pytest.mark.sweep]

RECIPE = """\
name: elastic
seed: 1
data: {kind: digits}
model: {kind: cnn, channels: [16, 32], blocks: 1, norm: group}
task: {kind: classification}
train: {epochs: EPOCHS, threads: 1, trackers: [], log_every_steps: 5, checkpoint: {every_steps: 5}}
scaling: {workers: [1, 2], backoff_seconds: 0.1, hang_seconds: 5}
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Head]:
    """A head with room for one worker."""
    with head(cpus=1) as started:
        yield started


class Training:
    """``fmdist train`` on the cluster, with what it says."""

    def __init__(self, cluster: Head, folder: Path, epochs: int) -> None:
        (folder / "recipe.yaml").write_text(RECIPE.replace("EPOCHS", str(epochs)))
        self.run = folder / "run"
        self._log = folder / "log"
        words = [FMDIST, "train", "recipe.yaml", "-o", str(self.run), "--address", cluster.address]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                words, cwd=folder, stdout=log, stderr=log, text=True, env=cluster.environment
            )

    def said(self) -> str:
        return self._log.read_text()

    def wait(self, true: Callable[[], bool]) -> None:
        until(true, self.process)

    def workers(self) -> int:
        """Return with how many workers it trains now; 0 between two attempts."""
        record = self.run / "run.json"
        return int(storage.read_json(record).get("workers", {}).get("count", 0)) if record.exists() else 0

    def steps(self) -> int:
        return len((self.run / "metrics.jsonl").read_text().splitlines()) if self.workers() else 0


def drain(cluster: Head, process: subprocess.Popen[str]) -> None:
    """Announce that a machine will be taken away."""
    (line,) = (one.line for one in below(process.pid) if "/raylet/raylet " in one.line)
    (node,) = re.findall(r"--node_id=(\w+)|--node-id=(\w+)", line)[0:1] or [("", "")]
    words = ["drain-node", "--address", cluster.address, "--node-id", node[0] or node[1]]
    words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    subprocess.run([RAY, *words, "--deadline-remaining-seconds", "60"], env=cluster.environment, check=True)


def test_workers_come_and_go_with_machines(cluster: Head, tmp_path: Path) -> None:
    with cluster.machine(1) as second:
        training = Training(cluster, tmp_path, epochs=1000)
        training.wait(lambda: training.workers() == 2 and training.steps() > 2)
        drain(cluster, second)
        training.wait(lambda: "machines are about to leave" in training.said())
        training.wait(lambda: training.workers() == 1)
    made = training.steps()
    training.wait(lambda: training.steps() > made + 1)
    with cluster.machine(1):
        training.wait(lambda: "there is room for more workers" in training.said())
        training.wait(lambda: training.workers() == 2)
        made = training.steps()
        training.wait(lambda: training.steps() > made + 1)
        training.process.send_signal(signal.SIGTERM)
        assert training.process.wait(timeout=120) == 143, training.said()
    # Planned changes are no losses, and no step was lost or made twice.
    assert "was cut off" not in training.said()
    trained = [record["step"] for record in records(training.run) if record["split"] == "train"]
    assert trained == list(range(5, trained[-1] + 1, 5))


def test_a_worker_that_hangs_is_named_and_replaced(cluster: Head, tmp_path: Path) -> None:
    with cluster.machine(1) as second:
        training = Training(cluster, tmp_path, epochs=30)
        training.wait(lambda: training.workers() == 2 and training.steps() > 2)
        (hanging,) = (one.number for one in below(second.pid) if one.line.startswith("ray::RayTrainWorker"))
        os.kill(hanging, signal.SIGSTOP)
        training.wait(lambda: "did nothing for 5 s, and the others wait" in training.said())
        assert training.process.wait(timeout=240) == 0, training.said()
    assert re.search(r"worker [01] on \S+ did nothing", training.said())
    assert not Path(f"/proc/{hanging}").exists()
    assert storage.read_json(training.run / "run.json")["status"] == "finished"
