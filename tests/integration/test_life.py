"""`fmdist run`: train, compress, verify, report; stopped anywhere, it goes on there."""

from __future__ import annotations

import shutil
import signal
import time
from pathlib import Path

import pytest

from fmdist import storage
from fmdist.errors import CheckpointError
from tests.integration.command_line import Life, fmdist, stamps, start, succeed

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("life")]

MARKERS = "artifacts/*/stages/*/done.json"
CHECKPOINTS = "runs/*/checkpoints/*/*"
STAGES = ["01-export", "02-quantize", "03-verify", "04-benchmark"]

MLP = """\
name: short
data: {kind: digits}
model: {kind: mlp, hidden: [16]}
task: {kind: classification}
train: {epochs: 1, lr: 1e-2, threads: 1, trackers: [], checkpoint: {keep: 5}}
compress: {runtimes: [openvino], benchmark: {samples: 10, batch_size: 16}}
"""


def finished_stages(folder: Path) -> list[str]:
    return [Path(name).parent.name for name in stamps(folder, MARKERS)]


def test_the_main_job_ends_in_a_table_and_the_reports(life: Life) -> None:
    lines = life.done.out.splitlines()
    assert lines[1].split() == ["model", "accuracy", "size", "gzip", "ms", "speed-up"]
    models = [" ".join(line.split()[:2]) for line in lines[2:9]]
    assert models[0] == "torch fp32"
    assert {"openvino fp32", "openvino int8", "onnxruntime fp32", "onnxruntime int8"} < set(models)
    assert lines[-3:] == [
        "artifact: artifacts/life",
        "run:      runs/life",
        "report:   runs/life/report.html",
    ]
    for stage in STAGES:
        assert stage in life.done.err
    run = storage.read_json(life.folder / "runs/life/run.json")
    assert run["status"] == "finished"
    assert run["artifact"] == "../../artifacts/life"
    storage.verify(life.folder / "artifacts/life")
    for report in ("runs/life/report.html", "artifacts/life/report.html"):
        page = (life.folder / report).read_text()
        assert "onnxruntime" in page.lower().replace(" ", "")
        assert "http://" not in page.replace("http://www.w3.org", "")


def test_a_second_call_repeats_nothing(lived: Path) -> None:
    patterns = (CHECKPOINTS, MARKERS, "artifacts/life/manifest.json", "runs/life/metrics.jsonl")
    before = [stamps(lived, pattern) for pattern in patterns]
    assert all(before)
    done = succeed(lived, "run", "life.yaml", "--json")
    assert [stamps(lived, pattern) for pattern in patterns] == before
    assert done.err.splitlines() == [
        "runs/life is trained already",
        *(f"{stage}: already done" for stage in STAGES),
    ]
    assert (done.json["run"], done.json["artifact"]) == ("runs/life", "artifacts/life")
    assert done.json["report"] == "runs/life/report.html"
    rows = {(row["runtime"], row["variant"]) for row in done.json["results"]}
    assert rows == {
        ("torch", "fp32"),
        *((runtime, variant) for runtime in ("openvino", "onnxruntime") for variant in ("fp32", "int8")),
    }


def test_a_changed_compression_repeats_only_that(lived: Path) -> None:
    checkpoints, markers = stamps(lived, CHECKPOINTS), stamps(lived, MARKERS)
    done = succeed(lived, "run", "life.yaml", "compress.benchmark.samples=15")
    assert stamps(lived, CHECKPOINTS) == checkpoints
    after = stamps(lived, MARKERS)
    assert [Path(name).parent.name for name in after if after[name] != markers[name]] == ["04-benchmark"]
    assert "trained already" in done.err
    manifest = storage.verify(lived / "artifacts/life")
    assert set(manifest["benchmark"]["samples"].values()) == {15}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stopped_compression_goes_on(lived: Path, number: signal.Signals) -> None:
    shutil.rmtree(lived / "artifacts")
    checkpoints = stamps(lived, CHECKPOINTS)
    process = start(lived, "run", "life.yaml")
    marker = lived / "artifacts/life/stages/01-export/done.json"
    while not marker.exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    _, err = process.communicate()
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert err.splitlines()[-1].startswith(f"error: interrupted by signal {number}. Finished stages are")
        assert "Traceback" not in err
    else:
        assert process.returncode == -signal.SIGKILL
    assert not (lived / "artifacts/life/manifest.json").exists()
    for verb in ("evaluate", "report"):
        refused = fmdist(lived, verb, "artifacts/life")
        assert (refused.code, refused.out) == (2, "")
    before = stamps(lived, MARKERS)
    succeed(lived, "run", "life.yaml")
    after = stamps(lived, MARKERS)
    assert {name: after[name] for name in before} == before
    assert finished_stages(lived) == STAGES
    assert stamps(lived, CHECKPOINTS) == checkpoints
    assert not list((lived / "artifacts/life").glob(".*.tmp"))
    storage.verify(lived / "artifacts/life")


def test_a_run_that_is_training_is_not_compressed(lived: Path) -> None:
    shutil.rmtree(lived / "artifacts")
    with storage.lock(lived / "runs/life"):
        refused = fmdist(lived, "compress", "runs/life")
    assert (refused.code, refused.out) == (2, "")
    assert "another process is writing here, such as the run's training. Wait until" in refused.err
    assert not (lived / "artifacts").exists()


def test_a_training_that_begins_meanwhile_costs_no_artifact(
    lived: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def locked(*arguments: object) -> None:
        raise CheckpointError(problem="another process is writing here")

    monkeypatch.setattr("fmdist.training.run.note", locked)
    done = succeed(lived, "compress", "runs/life")
    assert "its run's record doesn't name it: another process is writing here" in done.err
    storage.verify(lived / "artifacts/life")


def test_the_folder_that_one_stands_in_has_a_name(lived: Path) -> None:
    (lived / "artifacts").rename(lived / "runs/life/artifacts")  # its stages are done already
    done = succeed(lived / "runs/life", "compress", ".")
    assert "artifact: artifacts/life" in done.out
    assert (lived / "runs/life/artifacts/life/manifest.json").is_file()


def test_profile_and_more_epochs(tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text(MLP)
    succeed(tmp_path, "run", "short.yaml", "--profile")
    artifact = storage.verify(tmp_path / "artifacts/short")
    profile = {file.name: file.stat().st_size for file in (tmp_path / "runs/short/profile").iterdir()}
    assert len(profile) == 2
    assert all(profile.values())
    first = stamps(tmp_path, CHECKPOINTS)
    succeed(tmp_path, "run", "short.yaml", "train.epochs=2")
    second = stamps(tmp_path, CHECKPOINTS)
    assert {name: second[name] for name in first} == first
    assert len(second) == 2 * len(first)
    run = storage.read_json(tmp_path / "runs/short/run.json")
    assert (run["status"], run["epoch"]) == ("finished", 2)
    # The artifact of the shorter training makes way for that of the longer one.
    replaced = storage.verify(tmp_path / "artifacts/short")
    assert replaced["fingerprint"] != artifact["fingerprint"]
    assert replaced["results"][0]["value"] > artifact["results"][0]["value"]


def test_a_recipe_without_compression_ends_with_the_run(tmp_path: Path) -> None:
    (tmp_path / "short.yaml").write_text(MLP[: MLP.index("compress")])
    done = succeed(tmp_path, "run", "short.yaml", "--json")
    assert done.json == {"run": "runs/short", "report": "runs/short/report.html"}
    assert not (tmp_path / "artifacts").exists()


def test_a_new_artifact_is_shown_in_the_report_of_its_run(lived: Path) -> None:
    (lived / "artifacts/life").rename(lived / "artifacts/new")  # its stages are done already
    run = storage.read_json(lived / "runs/life/run.json")
    del run["artifact"]
    storage.write_json(lived / "runs/life/run.json", run)
    succeed(lived, "report", "runs/life")
    report = lived / "runs/life/report.html"
    assert "../../artifacts/new" not in report.read_text()
    done = succeed(lived, "compress", "runs/life", "-o", "artifacts/new")
    assert "../../artifacts/new" in report.read_text()
    assert done.out.splitlines()[-2:] == [
        "artifact: artifacts/new",
        "report:   artifacts/new/report.html",
    ]
