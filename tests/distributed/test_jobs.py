"""Jobs on a real Ray cluster that asks for a token."""

from __future__ import annotations

import secrets
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmdist import component, storage
from tests.distributed.clusters import head, until
from tests.distributed.rig import records
from tests.integration.command_line import fmdist, start, succeed

pytestmark = pytest.mark.slow

BASE = """\
data: {kind: digits}
task: {kind: classification}
train: {lr: 2e-3, threads: 1, trackers: [], log_every_steps: 5, checkpoint: {every_steps: 10}}
scaling: {workers: 2, backoff_seconds: 0.1}
"""

RECIPE = """\
extends: ../base.yaml
name: two
seed: 1
model: {kind: told, note: NOTE, channels: [8, 16], blocks: 1, norm: group, dropout: 0.2}
"""

PLUGIN = '''\
"""A CNN that notes which fmdist builds it, and where."""

from pathlib import Path

import fmdist
from fmdist.models.cnn import Config as Cnn


class Config(Cnn):
    """A CNN with a note."""

    note: str

    def build(self, spec, outputs):
        with Path(self.note).open("a") as file:
            file.write(f"{Path(fmdist.__file__).parents[1]} {Path(__file__).parents[3]}\\n")
        return super().build(spec, outputs)
'''


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("token") / "token"
    file.touch(mode=0o600)
    file.write_text(secrets.token_hex(32))
    return file


@pytest.fixture(scope="module")
def cluster(token: Path) -> Iterator[str]:
    """The address of a head that gives a job time to save, as a busy machine needs it."""
    settings = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_JOB_STOP_WAIT_TIME_S": "60"}
    with head(settings) as address:
        yield address


@pytest.fixture
def folder(tmp_path: Path, token: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe that extends another and needs a plug-in, and the token at hand."""
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(component, "_plugin_folders", [])
    for name, text in (("base.yaml", BASE), ("mine/two.yaml", RECIPE), ("plug/models/told.py", PLUGIN)):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text.replace("NOTE", str(tmp_path / "note")))
    return tmp_path


@pytest.mark.sweep
def test_a_job_is_followed_stopped_and_goes_on_from_its_checkpoint(cluster: str, folder: Path) -> None:
    at = ("--address", cluster)
    words = ("submit", "train", "mine/two.yaml", "train.epochs=30", "--plugins", "plug", "--follow")
    follower, run = start(folder, *words, *at), folder / "runs/two"
    until(lambda: len(list((run / "checkpoints").glob("step-*"))) >= 2, follower)
    follower.send_signal(signal.SIGINT)
    said = follower.communicate(timeout=60)[1]
    (job,) = succeed(folder, "jobs", "--json", *at).json["jobs"]
    assert (follower.returncode, job["status"], job["run"]) == (130, "RUNNING", str(run))
    assert "Running entrypoint" in said
    name = job["job"]
    assert f"The job goes on; look after it with: fmdist jobs {name} --follow" in said

    stopped = succeed(folder, "jobs", name, "--stop", "--json", *at).json
    assert (stopped["status"], stopped["saved"]) == ("STOPPED", True)
    record = storage.read_json(run / "run.json")
    assert (record["status"], record["workers"]["count"]) == ("interrupted", 2)
    assert 20 <= record["step"] < 30 * 20

    resumed = fmdist(folder, "jobs", name, "--resume", "--follow", "--json", *at)
    assert resumed.code == 0, resumed.err
    assert (resumed.json["job"], resumed.json["status"]) == (f"{name}-r1", "SUCCEEDED")
    assert resumed.json["resumes"] == name
    assert f"step {record['step']}" in resumed.err
    assert "95% interval of accuracy" in resumed.err
    steps = [line["step"] for line in records(run)]
    assert steps == sorted(steps)
    assert steps[-1] == 30 * 20
    # The drivers and their workers: all from the job's directory, and none from this machine's install.
    built = [line.split() for line in (folder / "note").read_text().splitlines()]
    assert len(built) >= 6
    (place,) = {place for line in built for place in line}
    assert "/working_dir_files/_ray_pkg_" in place


def test_the_users_mistake_in_a_job_is_told_by_the_exit_code(cluster: str, folder: Path) -> None:
    words = ("submit", "train", "mine/two.yaml", "train.batch_size=7", "--plugins", "plug", "--follow")
    done = fmdist(folder, *words, "--address", cluster)
    assert done.code == 2, done.err
    assert "don't divide the global batch" in done.err


def test_without_its_token_a_cluster_takes_nothing(
    cluster: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("submit", "train", "mine/two.yaml", "--plugins", "plug", "--address", cluster)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(folder / "none"))
    done = fmdist(folder, *words)
    assert (done.code, done.out) == (2, "")
    assert "there is none here" in done.err
    monkeypatch.setenv("RAY_AUTH_TOKEN", "wrong")
    assert "refuses the token of RAY_AUTH_TOKEN" in fmdist(folder, *words).err


@pytest.mark.sweep
def test_a_cluster_that_is_open_to_all_is_refused(folder: Path) -> None:
    with head({"RAY_AUTH_MODE": "disabled"}) as address:
        at = ("--address", address)
        done = fmdist(folder, "submit", "train", "mine/two.yaml", "--plugins", "plug", *at)
        assert (done.code, done.out) == (2, "")
        assert "lets everybody in" in done.err
        assert succeed(folder, "jobs", *at, "--insecure").out == "no jobs on this cluster\n"
