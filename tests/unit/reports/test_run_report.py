from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmdist import reports
from fmdist.errors import CheckpointError, UsageError
from tests.unit.reports.report_records import (
    class_record,
    logits,
    write_artifact,
    write_evaluation,
    write_run,
)

IMAGES = np.arange(4 * 64, dtype=np.uint8).reshape(4, 1, 8, 8)


def sections(html: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", html)


def classified(folder: Path, names: list[str] | None = None, **changes: Any) -> str:
    """Write a run of four test samples, the last two confused, and return its report."""
    names = names or ["cat", "dog", "owl"]
    run = write_run(folder)
    record = class_record(names, 4) | changes
    write_evaluation(run, record, logits([0, 1, 2, 1], len(names)), np.array([0, 1, 1, 2]), IMAGES)
    return reports.write(run).read_text(encoding="utf-8")


def test_every_record_has_its_section(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_evaluation(
        run, class_record(["a", "b", "c"], 4), logits([0, 1, 2, 1], 3), np.array([0, 1, 1, 2]), IMAGES
    )
    (run / "recipe.yaml").write_text("name: digits\n")
    (run / "data.json").write_text(
        json.dumps({"sizes": {"train": 70, "test": 30}, "duplicates_dropped": True})
    )
    html = reports.write(run).read_text(encoding="utf-8")
    assert sections(html) == ["Training", "Test", "Classes", "Examples", "Data", "Recipe", "Environment"]
    assert "train 70, test 30" in html
    assert html.count("<svg") == 3


def test_a_run_without_an_evaluation_shows_its_training_only(tmp_path: Path) -> None:
    html = reports.write(write_run(tmp_path / "run")).read_text(encoding="utf-8")
    assert sections(html) == ["Training", "Environment"]
    assert "validation accuracy" in html
    assert "baseline" not in html


def test_a_run_that_has_just_begun_has_no_curves(tmp_path: Path) -> None:
    html = reports.write(write_run(tmp_path / "run", history=False)).read_text(encoding="utf-8")
    assert sections(html) == ["Environment"]


def test_headline_numbers(tmp_path: Path) -> None:
    html = classified(tmp_path / "run")
    tiles = re.findall(r'label">(.*?)</div><div class="value">(.*?)</div><div class="note">(.*?)<', html)
    assert tiles == [
        ("test accuracy", "0.7500", "95%: 0.6000 to 0.8500"),
        ("baseline accuracy", "0.2500", "trivial predictor"),
        ("validation accuracy", "0.8125", "best checkpoint, step 20"),
        ("epochs", "2", "20 steps"),
        ("training time", "1 min 04 s", "5,000 samples per second"),
    ]


@pytest.mark.parametrize(
    ("baseline", "mode", "expected"),
    [
        (0.25, "max", "the model is better over the whole interval"),
        (0.60, "max", "the interval does not rule the baseline out"),
        (0.90, "min", "the model is better over the whole interval"),
        (0.85, "min", "the interval does not rule the baseline out"),
    ],
)
def test_the_verdict_compares_the_interval_with_the_baseline(
    tmp_path: Path, baseline: float, mode: str, expected: str
) -> None:
    html = classified(tmp_path / "run", mode=mode, baseline={"accuracy": baseline})
    assert expected in html


def test_validation_metrics_are_those_of_the_best_checkpoint(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    record = json.loads((run / "run.json").read_text()) | {"best_step": 10, "stopped_early": True}
    (run / "run.json").write_text(json.dumps(record))
    write_evaluation(run, class_record(["a", "b"], 2), logits([0, 1], 2), np.array([0, 1]))
    html = reports.write(run).read_text(encoding="utf-8")
    row = re.search(r"<td>accuracy \(primary\)</td>(.*?)</tr>", html, flags=re.DOTALL)
    assert row is not None
    assert re.findall(r">([^<]+)</td>", row[1]) == ["0.7500", "0.6000 to 0.8500", "0.2500", "0.7500"]
    assert "20 steps, stopped early" in html


def test_confusions_and_scores_per_class(tmp_path: Path) -> None:
    html = classified(tmp_path / "run")
    assert "Classified wrong: 2 of 4 test samples" in html
    assert 'title="true dog, predicted owl: 1 (50.0%)"' in html
    assert 'title="true cat, predicted cat: 1 (100.0%)"' in html
    rows = re.findall(r"<tr>\s*<td>(cat|dog|owl)</td>(.*?)</tr>", html, flags=re.DOTALL)
    scores = {name: re.findall(r">([\d.]+)<", cells) for name, cells in rows}
    assert scores["cat"] == ["1.000", "1.000", "1.000", "1", "1"]
    assert scores["dog"] == ["0.500", "0.500", "0.500", "2", "2"]
    assert scores["owl"] == ["0.000", "0.000", "0.000", "1", "1"]


def test_a_class_that_never_occurs_has_no_score(tmp_path: Path) -> None:
    html = classified(tmp_path / "run", ["cat", "dog", "owl", "eel"])
    row = re.search(r"<td>eel</td>(.*?)</tr>", html, flags=re.DOTALL)
    assert row is not None
    assert re.findall(r">([^<]+)</td>", row[1]) == ["n/a", "n/a", "n/a", "0", "0"]


def test_many_classes_are_listed_by_their_confusions(tmp_path: Path) -> None:
    html = classified(tmp_path / "run", [f"class {k}" for k in range(60)])
    assert 'class="matrix' not in html
    assert "The 2 most frequent confusions" in html
    assert "The 40 of 60 classes with the lowest F1" in html


def test_the_most_confident_mistake_comes_first(tmp_path: Path) -> None:
    html = classified(tmp_path / "run")
    wrong, right = html.split("<h3>Right</h3>")
    titles = re.findall(r'class="example( wrong)?"><img [^>]*>(\w+)<br><span>(.*?)</span>', wrong)
    assert [(title, note.split(" · ")[0]) for _, title, note in titles] == [
        ("dog", "true: owl"),
        ("owl", "true: dog"),
    ]
    assert re.findall(r'class="example"><img [^>]*>(\w+)<br>', right) == ["cat", "dog"]


def test_every_text_is_escaped(tmp_path: Path) -> None:
    html = classified(tmp_path / "run", ["<script>alert(1)</script>", '"><img src=x>', "c & d"])
    assert "<script" not in html
    assert "<img src=x>" not in html
    assert "&lt;script&gt;alert(1)" in html
    assert "c &amp; d" in html


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    html = classified(tmp_path / "run")
    sources = re.findall(r'\b(?:src|href|xlink:href)="([^"]*)"', html)
    assert sources
    assert all(source.startswith(("#", "data:image/png;base64,")) for source in sources)
    assert not re.search(r"https?:|@import|<script|<link", html)
    assert "default-src 'none'" in html


def test_ids_are_unique_and_references_resolve(tmp_path: Path) -> None:
    html = classified(tmp_path / "run")
    ids = re.findall(r'\bid="([^"]*)"', html)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'href="#([^"]*)"', html) + re.findall(r"url\(#([^)]*)\)", html)) <= set(ids)


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    assert classified(tmp_path / "one") == classified(tmp_path / "two")


def test_regression_shows_residuals(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    target = np.linspace(0, 10, 700, dtype=np.float32)[:, None] * np.ones(2, dtype=np.float32)
    record = class_record([], 700) | {
        "metrics": {"rmse": 0.5},
        "primary": "rmse",
        "mode": "min",
        "interval": [0.4, 0.6],
        "baseline": {"rmse": 2.9},
        "target": {"kind": "value", "names": ["price", "rent"]},
        "rule": "value",
    }
    write_evaluation(run, record, target + np.float32(0.5), target)
    html = reports.write(run).read_text(encoding="utf-8")
    assert sections(html) == ["Training", "Test", "Predictions", "Environment"]
    assert re.findall("<h3>((?:price|rent).*?)</h3>", html) == [
        "price: predicted and true",
        "price: residuals",
        "rent: predicted and true",
        "rent: residuals",
    ]
    assert "Mean 0.5000 (bias)" in html
    assert "500 of 700 samples are drawn" in html


def test_exact_predictions_and_one_that_is_not_finite(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    target = np.arange(6, dtype=np.float32)
    record = class_record([], 6) | {"rule": "value", "target": {"kind": "value", "names": ["y"]}}
    outputs = np.append(target[:-1], np.float32("nan"))[:, None]
    write_evaluation(run, record, outputs, target)
    html = reports.write(run).read_text(encoding="utf-8")
    assert "Mean 0.0000 (bias)" in html
    assert "1 of 6 predictions are not finite" in html


def test_labels_are_scored_one_by_one(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    record = class_record([], 4) | {"rule": "labels", "target": {"kind": "labels", "names": ["sea", "sky"]}}
    outputs = np.array([[9, -9], [9, 9], [-9, 3], [-9, -9]], dtype=np.float32)
    target = np.array([[1, 0], [1, 1], [0, 0], [1, 0]], dtype=np.float32)
    write_evaluation(run, record, outputs, target, IMAGES)
    html = reports.write(run).read_text(encoding="utf-8")
    assert sections(html) == ["Training", "Test", "Labels", "Examples", "Environment"]
    assert 'class="matrix' not in html
    wrong, right = html.split("<h3>Right</h3>")
    found = re.findall(r'example wrong"><img [^>]*>(.*?)<br><span>(.*?)</span>', wrong)
    assert found == [("none", "true: sea · 100.0%"), ("sky", "true: none · 95.3%")]
    assert re.findall(r'class="example"><img [^>]*>(.*?)<br>', right) == ["sea", "sea, sky"]


def test_labels_are_given_from_the_threshold_of_the_task(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    record = class_record([], 2) | {"rule": "labels", "target": {"kind": "labels", "names": ["sea"]}}
    write_evaluation(
        run, record, np.array([[1], [3]], dtype=np.float32), np.array([[0], [1]], dtype=np.float32)
    )
    recalled = re.compile(r"<td>sea</td>\s*<td[^>]*>([^<]+)<")
    assert recalled.findall(reports.write(run).read_text(encoding="utf-8")) == ["0.500"]
    (run / "signature.json").write_text('{"decoding": {"rule": "labels", "threshold": 0.9}}')
    assert recalled.findall(reports.write(run).read_text(encoding="utf-8")) == ["1.000"]


def test_the_artifact_is_linked_and_its_results_shown(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"artifact": "../artifact"}))
    gone = reports.write(run).read_text(encoding="utf-8")
    assert "no longer there" in gone
    write_artifact(tmp_path / "artifact")
    html = reports.write(run).read_text(encoding="utf-8")
    assert 'href="../artifact/report.html"' in html
    assert "OpenVINO int8" in html


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    before = reports.write(run).read_text(encoding="utf-8")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "st')
    assert reports.write(run).read_text(encoding="utf-8") == before


def test_values_that_are_not_finite_leave_a_gap(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "step": 30, "split": "validation", "loss": NaN, "accuracy": NaN}\n')
    html = reports.write(run).read_text(encoding="utf-8")
    assert "kept as the best, at epoch 2" in html
    assert html.count("<svg") == 3


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("run.json", b"{", "run.json"),
        ("run.json", b'{"format": 7}', "run.json: format"),
        ("metrics.jsonl", b"{}\nnonsense\n", "metrics.jsonl:2"),
        ("data.json", b"[]", "data.json"),
        ("evaluation/test.npz", b"PK nonsense", "test.npz"),
    ],
)
def test_a_broken_record_is_named(tmp_path: Path, file: str, content: bytes, named: str) -> None:
    classified(tmp_path / "run")
    (tmp_path / "run" / file).write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(named)):
        reports.write(tmp_path / "run")


def test_arrays_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_evaluation(run, class_record(["a", "b", "c"], 2), logits([0, 1], 2), np.array([0, 1]))
    with pytest.raises(CheckpointError, match="don't fit"):
        reports.write(run)
    np.savez(run / "evaluation" / "test.npz", outputs=logits([0, 1], 3), target=[0, 1], index=[0, 1])
    np.savez(run / "evaluation" / "examples.npz", image=IMAGES, index=np.arange(4))
    with pytest.raises(CheckpointError, match="another test split"):
        reports.write(run)


@pytest.mark.parametrize("exists", [True, False])
def test_another_folder_is_refused(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "checkpoint"
    if exists:
        folder.mkdir()
        (folder / "manifest.json").write_text('{"format": 4, "files": {}}')
    with pytest.raises(UsageError, match=r"run\.json") as raised:
        reports.write(folder)
    assert ("neither a run nor an artifact" in str(raised.value)) == exists
