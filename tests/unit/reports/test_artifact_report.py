from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from fmdist import reports
from fmdist.errors import CheckpointError
from tests.unit.reports.report_records import manifest, result, write_artifact


def written(folder: Path, **changes: Any) -> str:
    return reports.write(write_artifact(folder, **changes)).read_text(encoding="utf-8")


def test_sections_and_headline_numbers(tmp_path: Path) -> None:
    html = written(tmp_path / "artifact")
    assert re.findall(r"<h2>(.*?)</h2>", html) == [
        "Before and after",
        "Parity",
        "Quantize",
        "Signature",
        "Stages",
        "How it was measured",
        "Recipe",
        "Environment",
    ]
    tiles = re.findall(r'label">(.*?)</div><div class="value">(.*?)</div><div class="note">(.*?)<', html)
    assert tiles == [
        ("test accuracy", "0.9815", "OpenVINO int8"),
        ("accuracy before", "0.9852", "torch fp32"),
        ("drop", "+0.0037", "0.0100 allowed"),
        ("size ratio", "0.276", "350 kB; fp32 is 1"),
        ("speed-up over torch", "6.2 x", "0.0660 ms a sample on 1 thread"),
    ]


def test_every_result_is_a_row(tmp_path: Path) -> None:
    html = written(tmp_path / "artifact")
    row = re.search(r"<td>OpenVINO int8</td>(.*?)</tr>", html, flags=re.DOTALL)
    assert row is not None
    assert re.findall(r">([^<]+)</td>", row[1]) == [
        "default",
        "int8 x 6",
        "0.9815",
        "+0.0037",
        "350 kB",
        "290 kB",
        "0.276",
        "0.0660",
        "0.0600",
        "6.20",
        "9,000",
    ]


def test_what_was_not_measured_is_blank(tmp_path: Path) -> None:
    untimed: dict[str, Any] = {"latency_ms": None, "throughput_per_s": None, "speedup": None}
    rows = [result("torch", "fp32", "f32", **untimed), result("openvino", "fp32", "default", **untimed)]
    html = written(tmp_path / "artifact", results=rows, passes=[], parity=[])
    assert "<h3>Latency</h3>" not in html
    assert "<h3>Size</h3>" in html
    assert "speed-up over torch" not in html
    assert "<h2>Parity</h2>" not in html
    assert "<h2>Quantize</h2>" not in html


def test_a_drop_beyond_the_limit_is_said(tmp_path: Path) -> None:
    html = written(tmp_path / "artifact", primary={"name": "accuracy", "mode": "max", "max_drop": 0.001})
    assert "OpenVINO int8 (default) loses 0.0037 accuracy" in html
    assert "No model loses more" not in html


def test_no_drop_at_all(tmp_path: Path) -> None:
    rows = [result("torch", "fp32", "f32"), result("openvino", "fp32", "f32", drop=-0.0037)]
    assert "No model loses any accuracy" in written(tmp_path / "artifact", results=rows)


def test_parity_outside_the_tolerance_is_said(tmp_path: Path) -> None:
    broken = manifest()["parity"][0] | {"relative": 2e-5}
    html = written(tmp_path / "artifact", parity=[broken])
    assert "Outside the tolerance: OpenVINO at batch 5" in html
    assert "within the tolerance" not in html


def test_candidates_and_layers_left_are_listed(tmp_path: Path) -> None:
    html = written(tmp_path / "artifact")
    for text in (
        "no bias correction",
        "chosen",
        "accuracy at f32",
        "6 of 7 layers",
        "99.6% of their parameters",
    ):
        assert text in html
    assert "ignored scope" in html


def test_an_unknown_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="format"):
        written(tmp_path / "artifact", format=1)


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    assert written(tmp_path / "one") == written(tmp_path / "two")
