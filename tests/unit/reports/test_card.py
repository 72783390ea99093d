"""An artifact's model card says what its manifest says."""

from __future__ import annotations

import yaml

from fmdist.reports.card import card
from tests.unit.reports.report_records import manifest


def head_of(text: str) -> dict[str, object]:
    _, head, _ = text.split("---\n", 2)
    found: dict[str, object] = yaml.safe_load(head)
    return found


def test_the_head_is_what_hubs_read() -> None:
    models: dict[str, object] = {"openvino": {"fp32": {}, "int8": {}}, "onnxruntime": {"fp32": {}}}
    head = head_of(card(manifest(models=models, recipe={"compress": {"license": "mit"}}), "digits"))
    assert head == {
        "license": "mit",
        "library_name": "fmdist",
        "base_model": "runs/digits",
        "base_model_relation": "quantized",
        "metrics": ["accuracy"],
        "tags": ["onnxruntime", "openvino"],
    }


def test_without_a_license_it_says_so() -> None:
    text = card(manifest(), "digits")
    assert head_of(text)["license"] == "unknown"
    assert head_of(text)["base_model_relation"] == "finetune"
    assert "not stated by the recipe (compress.license)" in text


def test_figures_are_the_manifest_s() -> None:
    text = card(manifest(), "digits")
    assert "| OpenVINO int8 | default | 0.9815 |" in text
    assert "`quantize`" in text
    assert "270 samples of the test split" in text
    assert 'load(Path("digits"))' in text
