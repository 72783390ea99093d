"""Two hosts: a job that trains on both, one without the token, and a host that is lost."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from fmdist import stages, storage
from fmdist.orchestration import overseer, workers
from tests.distributed.hosts import Hosts, two_hosts
from tests.distributed.rig import alone, records, train_in_processes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SAID = "said.txt"
"""What a job's log said to who has submitted it."""

EVERY_STEPS = 5
EPOCHS = 12

RECIPE = f"""\
name: hosts
seed: 1
data: {{kind: digits}}
model: {{kind: cnn, channels: [8, 16], blocks: 1, norm: group, dropout: 0.2}}
task: {{kind: classification}}
train:
  epochs: {EPOCHS}
  lr: 2e-3
  threads: 1
  trackers: []
  log_every_steps: 1
  checkpoint: {{every_steps: {EVERY_STEPS}}}
scaling: {{workers: 2, placement: strict_spread, backoff_seconds: 0.1, wait_seconds: 300}}
"""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hosts]:
    with two_hosts(tmp_path_factory.mktemp("hosts")) as started:
        yield started


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two processes on this machine, to which nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    (folder / "recipe.yaml").write_text(RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(overseer, "ready", alone)
        patch.setattr(workers, "train_on_workers", train_in_processes)
        stages.train(folder / "recipe.yaml", output=folder / "run")
    return folder / "run"


def submit(hosts: Hosts, folder: Path, *words: str, token: bool = True) -> subprocess.Popen[str]:
    """Submit the training as a job, from outside the cluster."""
    (folder / "job").mkdir(exist_ok=True)
    (folder / "job/recipe.yaml").write_text(RECIPE)
    train = ["fmdist", "train", "recipe.yaml", *words]
    with (folder / SAID).open("w") as said:
        return subprocess.Popen(
            [*hosts.outside(), "ray", "job", "submit", "--working-dir", ".", "--", *train],
            cwd=folder / "job",
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            text=True,
            env=hosts.environment(token) | {"PYTHONUNBUFFERED": "1"},
        )


def ended(job: subprocess.Popen[str], folder: Path) -> tuple[int, str]:
    return job.wait(timeout=400), (folder / SAID).read_text()


def last_step(run: Path) -> int:
    with suppress(FileNotFoundError, IndexError, ValueError):
        return int(json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"])
    return 0


def newest_step(run: Path) -> int:
    return int(sorted((run / "checkpoints").glob("step-*"))[-1].name[5:15])


def until(true: Callable[[], bool], job: subprocess.Popen[str], folder: Path) -> None:
    for _ in range(30000):
        if true():
            return
        assert job.poll() is None, (folder / SAID).read_text()
        time.sleep(0.01)
    pytest.fail("it never came to that")


def weights(run: Path) -> bytes:
    return (sorted((run / "checkpoints").iterdir())[-1] / "model.safetensors").read_bytes()


def test_without_the_token_nothing_is_submitted(hosts: Hosts, tmp_path: Path) -> None:
    code, said = ended(submit(hosts, tmp_path, "-o", str(tmp_path / "run"), token=False), tmp_path)
    assert code != 0
    assert "Unauthorized" in said
    assert not (tmp_path / "run").exists()
    command = [*hosts.outside(), "ray", "job", "list"]
    listed = subprocess.run(command, env=hosts.environment(), capture_output=True, text=True, check=True)
    assert listed.stdout.strip().endswith("[]")


def test_a_folder_that_only_one_host_has_is_refused(hosts: Hosts, tmp_path: Path) -> None:
    # Without -o it is in the job's working directory, of which each host has a copy.
    code, said = ended(submit(hosts, tmp_path), tmp_path)
    assert code != 0
    assert "error: -o: the machine host2 doesn't see the run's folder" in said
    assert "Going on from" not in said


def test_a_job_goes_on_after_a_host_is_lost(hosts: Hosts, undisturbed: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = submit(hosts, tmp_path, "-o", str(run))
    until(lambda: last_step(run) > 0, job, tmp_path)
    for number in (1, 2):
        assert any("RayTrainWorker" in line for line in hosts.processes(number))
    until(lambda: last_step(run) >= 6 * EVERY_STEPS, job, tmp_path)
    hosts.kill(2)
    until(lambda: "RayTrainWorker" not in "".join(hosts.processes(1)), job, tmp_path)
    made, kept = last_step(run), newest_step(run)
    until(lambda: "waiting for 2 CPU on 2 machine(s)" in (tmp_path / SAID).read_text(), job, tmp_path)
    hosts.start(2)
    code, said = ended(job, tmp_path)
    assert code == 0, said
    assert "Going on from the newest checkpoint" in said
    (resumed,) = re.findall(r"resuming at epoch \d+, step (\d+)", said)
    assert int(resumed) == kept
    # The lost host may have been the one that was writing, and the other trained on meanwhile.
    assert 0 <= made - kept < 2 * EVERY_STEPS
    assert weights(run) == weights(undisturbed)
    assert records(run) == records(undisturbed)
    assert sorted(storage.read_json(run / "run.json")["workers"]["hosts"]) == ["host1", "host2"]
