"""`fmdist submit` and `fmdist jobs` against a server that answers as Ray's job API does."""

from __future__ import annotations

import io
import json
import shlex
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fmdist import component
from tests.integration.command_line import Done, fmdist, succeed
from tests.unit.orchestration.job_server import TOKEN, JobServer, serving

RECIPE = """\
name: small
data: {kind: digits}
model: {kind: cnn}
task: {kind: classification}
compress: {passes: [{kind: quantize}]}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a recipe, and no setting of Ray but a token."""
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(component, "_plugin_folders", [])
    (tmp_path / "small.yaml").write_text(RECIPE)
    return tmp_path


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobServer]:
    with serving(JobServer()) as server:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", server.address)
        yield server


def refused(done: Done, *said: str) -> None:
    assert (done.code, done.out) == (2, "")
    (line,) = done.err.splitlines()
    assert line.startswith("error: ")
    for words in said:
        assert words in line
    assert TOKEN not in line


def test_a_job_is_packed_and_handed_in(cluster: JobServer, folder: Path) -> None:
    (folder / "my kinds/models").mkdir(parents=True)
    words = ("submit", "run", "small.yaml", "model.channels=[8, 16]", "train.epochs=2")
    done = succeed(folder, *words, "--plugins", "my kinds", "--json").json
    (job,) = cluster.jobs
    assert job["submission_id"] == done["job"]
    assert done["job"].startswith("small-2")
    assert job["runtime_env"].keys() == {"working_dir"}
    program, *said = shlex.split(job["entrypoint"])
    assert program == "exec"
    run, artifact = str(folder / "runs/small"), str(folder / "artifacts/small")
    assert said == [
        *("python", "-m", "fmdist", "run", "-o", run, "--artifact", artifact, "--plugins", "plugins/0"),
        *("--", "recipe/small.yaml", "model.channels=[8, 16]", "train.epochs=2"),
    ]
    assert {name: job["metadata"][f"fmdist.{name}"] for name in ("recipe", "verb", "run", "artifact")} == {
        "recipe": "small",
        "verb": "run",
        "run": run,
        "artifact": artifact,
    }
    assert all(isinstance(text, str) for text in job["metadata"].values())
    assert TOKEN not in json.dumps(job)
    assert (done["run"], done["artifact"], done["status"]) == (run, artifact, "RUNNING")
    (package,) = cluster.packages.values()
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        assert archive.read("recipe/small.yaml").decode() == RECIPE
        assert len(archive.namelist()) == done["packed"]["files"]


def test_what_is_said_names_the_run_and_how_to_look_after_it(cluster: JobServer, folder: Path) -> None:
    words = ("-o", "/shared/it's; ls", "--python", "/my py")
    out = succeed(folder, "submit", "train", "small.yaml", *words).out
    (job,) = cluster.jobs
    name = job["submission_id"]
    where = shlex.quote("/shared/it's; ls")
    assert job["entrypoint"] == f"exec '/my py' -m fmdist train -o {where} -- recipe/small.yaml"
    packed, first, run, *commands = out.splitlines()
    assert packed.startswith("packed: ")
    assert packed.endswith("fmdist: this checkout's, packed")
    assert first == f"job:    {name} (running)"
    assert run == "run:    /shared/it's; ls (on the cluster)"
    assert commands == [
        f"fmdist jobs {name} {do} --address {cluster.address}" for do in ("--follow", "--stop")
    ]


def test_the_token_is_shown_to_no_server_that_does_not_ask(folder: Path) -> None:
    with serving(JobServer(token=None)) as server:
        words = ("submit", "train", "small.yaml", "--address", server.address)
        refused(fmdist(folder, *words), "--address: this server lets everybody in", "RAY_AUTH_MODE=token")
        refused(fmdist(folder, "jobs", "--address", server.address), "lets everybody in")
        assert server.jobs == []
        out = succeed(folder, *words, "--insecure").out
        assert len(server.jobs) == 1
        assert out.splitlines()[-1].endswith("--insecure")
        assert not any(shown for _, _, shown in server.seen)


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("wrong", "the server refuses the token of RAY_AUTH_TOKEN, got 'http"),
        (None, "RAY_AUTH_TOKEN_PATH: the server asks for a token, and there is none here"),
        ("not\na header", "RAY_AUTH_TOKEN_PATH: not a token"),
    ],
    ids=["wrong", "none", "lines"],
)
def test_without_the_right_token_nothing_is_handed_in(
    cluster: JobServer, folder: Path, monkeypatch: pytest.MonkeyPatch, token: str | None, said: str
) -> None:
    (folder / "token").unlink()
    if token is not None and "\n" in token:
        (folder / "token").write_text(token)
    elif token is not None:
        monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    refused(fmdist(folder, "submit", "train", "small.yaml"), said)
    refused(fmdist(folder, "submit", "train", "small.yaml", "--insecure"), said)
    assert cluster.jobs == []
    assert cluster.packages == {}


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (None, "--address: no cluster is named"),
        ("http://127.0.0.1:1", "--address: no job API answers there"),
        ("127.0.0.1:8265", "--address: not the address of a job API"),
        ("http://me:secret@127.0.0.1:8265", "must hold no name and no password"),
        ("http://127.0.0.1:8265/?token=x", "not the address of a job API"),
        ("http://127.0.0.1:x", "not the address of a job API"),
    ],
    ids=["none", "nobody", "no scheme", "password", "query", "port"],
)
def test_a_wrong_address_is_told_at_once(folder: Path, address: str | None, said: str) -> None:
    words = ("--address", address) if address else ()
    done = fmdist(folder, "jobs", *words)
    refused(done, said)
    assert "secret" not in done.err


def test_what_is_not_ray_is_told(folder: Path) -> None:
    with serving(JobServer()) as server:
        server.token = None
        server.about = "hello"
        refused(fmdist(folder, "jobs", "--address", server.address), "is not Ray's job API")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["small.yaml", "train.epoch=2"], "did you mean 'epochs'"),
        (["nowhere.yaml"], "no such recipe file"),
        (["table.yaml"], "data.path: this lies on this machine"),
        (["absolute.yaml"], "extends: an absolute path isn't found on the cluster"),
    ],
    ids=["key", "file", "data", "extends"],
)
def test_a_recipe_that_can_not_work_is_not_sent(
    cluster: JobServer, folder: Path, words: list[str], said: str
) -> None:
    table = "{kind: table, path: small.yaml, target: x}"
    (folder / "table.yaml").write_text(RECIPE.replace("{kind: digits}", table))
    (folder / "absolute.yaml").write_text(f"extends: {folder}/small.yaml\n")
    done = fmdist(folder, "submit", "train", *words)
    assert (done.code, done.out) == (2, "")
    assert said.casefold() in done.err.casefold()
    assert cluster.seen == []


@pytest.mark.parametrize("words", [[], ["-o", "runs/small"]], ids=["none", "relative"])
def test_another_machine_needs_a_folder_that_it_shares(
    cluster: JobServer, folder: Path, words: list[str]
) -> None:
    cluster.hosts = ["elsewhere"]
    refused(fmdist(folder, "submit", "train", "small.yaml", *words), "-o: the cluster is not this machine")
    assert cluster.jobs == []
    succeed(folder, "submit", "train", "small.yaml", "-o", "/shared/runs/small")
    assert cluster.jobs[0]["metadata"]["fmdist.run"] == "/shared/runs/small"


def test_two_jobs_never_have_one_run(cluster: JobServer, folder: Path) -> None:
    succeed(folder, "submit", "train", "small.yaml")
    refused(
        fmdist(folder, "submit", "train", "small.yaml", "seed=1"), "is running and has this run", "--stop"
    )
    cluster.end("STOPPED")
    succeed(folder, "submit", "train", "small.yaml")


def test_jobs_are_listed_and_shown(cluster: JobServer, folder: Path) -> None:
    assert succeed(folder, "jobs").out == "no jobs on this cluster\n"
    name = succeed(folder, "submit", "train", "small.yaml", "--json").json["job"]
    cluster.end("FAILED", 1, message="Job failed:\nerror: the loss is not finite")
    cluster.jobs.append(
        {"type": "SUBMISSION", "submission_id": "another", "status": "PENDING", "entrypoint": "ls"}
    )
    cluster.jobs.append({"type": "DRIVER", "job_id": "02", "status": "RUNNING", "entrypoint": "python"})
    columns, ours, other = succeed(folder, "jobs").out.splitlines()
    assert columns.split("  ")[0] == "job"
    assert ours.split() == [
        *(
            name,
            "failed",
            "small",
            str(folder / "runs/small"),
            "2023-11-14",
            "22:13:20+00:00",
            "1",
            "min",
            "00",
            "s",
        )
    ]
    assert other.split() == ["another", "pending", "-", "-", "-", "-"]
    shown = succeed(folder, "jobs", name).out
    assert shown.endswith("error: the loss is not finite\n")
    assert f"run:      {folder}/runs/small (on the cluster)" in shown
    listed = succeed(folder, "jobs", "--json").json["jobs"]
    assert [job["job"] for job in listed] == [name, "another"]
    assert (listed[0]["status"], listed[0]["exit_code"], listed[0]["seconds"]) == ("FAILED", 1, 60.0)
    refused(fmdist(folder, "jobs", name[:-1]), "no such job", f"Did you mean '{name}'?")
    cluster.logs = "one\ntwo\n"
    assert succeed(folder, "jobs", name, "--logs").out == "one\ntwo\n"
    assert succeed(folder, "jobs", name, "--logs", "--json").json == {"job": name, "log": "one\ntwo\n"}


def test_stop_says_whether_the_run_has_saved(cluster: JobServer, folder: Path) -> None:
    name = succeed(folder, "submit", "train", "small.yaml", "--json").json["job"]
    cluster.logs = "step 1\nerror: interrupted by signal 15. Saved at step 7; the same command resumes\n"
    out = succeed(folder, "jobs", name, "--stop").out
    assert out.splitlines()[-1] == "interrupted by signal 15. Saved at step 7; the same command resumes"
    refused(fmdist(folder, "jobs", name, "--stop"), "the job has ended already (stopped)")
    again = succeed(folder, "jobs", name, "--resume", "--json").json["job"]
    cluster.logs = "step 1\n"
    done = succeed(folder, "jobs", again, "--stop", "--json").json
    assert (done["status"], done["saved"]) == ("STOPPED", False)


def test_too_short_a_grace_is_told(cluster: JobServer, folder: Path) -> None:
    name = succeed(folder, "submit", "train", "small.yaml", "--json").json["job"]
    assert "RAY_JOB_STOP_WAIT_TIME_S=60" in succeed(folder, "jobs", name, "--stop").out


def test_resume_hands_the_same_in_again(cluster: JobServer, folder: Path) -> None:
    name = succeed(folder, "submit", "train", "small.yaml", "train.epochs=3", "--json").json["job"]
    refused(fmdist(folder, "jobs", name, "--resume"), "the job still runs", "--stop")
    cluster.end("SUCCEEDED", 0)
    refused(fmdist(folder, "jobs", name, "--resume"), "the job has succeeded")
    cluster.end("FAILED", 1)
    (folder / "small.yaml").write_text("changed meanwhile")
    cluster.packages.clear()
    out = succeed(folder, "jobs", name, "--resume").out
    assert f"{name}-r1" in out
    first, second = cluster.jobs
    assert second["submission_id"] == f"{name}-r1"
    assert second["metadata"] == first["metadata"] | {"fmdist.resumes": name}
    assert [second[key] for key in ("entrypoint", "runtime_env")] == [
        first[key] for key in ("entrypoint", "runtime_env")
    ]
    assert list(cluster.packages) == [second["runtime_env"]["working_dir"].removeprefix("gcs://")]
    refused(fmdist(folder, "jobs", name, "--resume"), f"the job {name}-r1 is running and has this run")
    cluster.end("FAILED", 1)
    assert succeed(folder, "jobs", f"{name}-r1", "--resume", "--json").json["job"] == f"{name}-r2"


def test_resume_from_another_machine_needs_what_the_cluster_still_has(
    cluster: JobServer, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = succeed(folder, "submit", "train", "small.yaml", "--json").json["job"]
    cluster.end("STOPPED")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "other"))
    kept = dict(cluster.packages)
    cluster.packages.clear()
    refused(fmdist(folder, "jobs", name, "--resume"), "gone from the cluster", f"-o {folder}/runs/small")
    cluster.packages |= kept
    succeed(folder, "jobs", name, "--resume")
    cluster.end("STOPPED")
    cluster.jobs.append(
        {"type": "SUBMISSION", "submission_id": "another", "status": "FAILED", "entrypoint": "ls"}
    )
    refused(fmdist(folder, "jobs", "another", "--resume"), "not handed in by fmdist submit")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["jobs", "--stop"], "ID: no job is named"),
        (["jobs", "--follow"], "ID: no job is named"),
        (["jobs", "x", "--stop", "--follow"], "--follow: can't be combined with --stop"),
        (["submit", "compress", "small.yaml"], "'compress' is not one of 'train', 'run'"),
    ],
)
def test_a_wrong_command_line_asks_no_server(
    cluster: JobServer, folder: Path, words: list[str], said: str
) -> None:
    refused(fmdist(folder, *words), said)
    assert cluster.seen == []
