from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from fmdist.cli.main import main
from fmdist.compression.config import CompressConfig
from fmdist.compression.passes import quantize
from fmdist.errors import CapabilityError
from fmdist.stages.compressing import section


def parse(text: str) -> CompressConfig:
    return CompressConfig.model_validate_json(text)


def test_passes_are_chosen_by_kind_and_read_back() -> None:
    config = parse('{"passes": [{"kind": "quantize", "presets": ["mixed"]}], "max_drop": 0.02}')
    assert config.passes == (quantize.Config(presets=("mixed",)),)
    dumped = config.model_dump(mode="json")
    assert dumped["passes"][0]["kind"] == "quantize"
    assert TypeAdapter(CompressConfig).validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ('{"passes": [{"kind": "quantise"}]}', ("passes", 0), "quantize"),
        ('{"passes": [{"presets": ["mixed"]}]}', ("passes", 0), "required key is missing"),
        ('{"passes": [{"kind": "quantize", "presets": ["fast"]}]}', ("passes", 0, "presets", 0), "mixed"),
        ('{"passes": [{"kind": "quantize"}, {"kind": "quantize"}]}', ("passes",), "once"),
        ('{"max_drop": -0.1}', ("max_drop",), "greater than or equal to 0"),
        ('{"max_drop": "0.1"}', ("max_drop",), "valid number"),
        ('{"runtimes": []}', ("runtimes",), "at least 1"),
        ('{"runtimes": ["openvino", "openvino"]}', ("runtimes",), "once"),
        ('{"benchmark": {"threads": 0}}', ("benchmark", "threads"), "greater than or equal to 1"),
        ('{"quantise": {}}', ("quantise",), "Extra inputs"),
    ],
)
def test_mistakes_name_their_place(text: str, where: tuple[Any, ...], what: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(text)
    error = caught.value.errors()[0]
    assert error["loc"] == where
    assert what in error["msg"]


def test_reading_a_recipe_loads_neither_torch_nor_a_runtime() -> None:
    code = (
        "import sys; from fmdist.compression.config import CompressConfig; "
        'CompressConfig.model_validate_json(\'{"passes": [{"kind": "quantize"}]}\'); '
        "loaded = {'torch', 'nncf', 'openvino', 'onnx', 'onnxruntime'} & set(sys.modules); "
        "sys.exit(f'loaded {loaded}' if loaded else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


def test_a_caller_s_rounding_goes_before_the_recipe_s() -> None:
    recipe = {"compress": {"passes": [{"kind": "prune_weights"}, {"kind": "quantize"}]}}
    kinds = [settings.kind() for settings in section(recipe, {"compress_weights": {}}, {}).passes]
    assert kinds == ["prune_weights", "compress_weights"]
    assert [settings.kind() for settings in section(recipe, {"fold": {}}, {}).passes] == [
        "prune_weights",
        "fold",
        "quantize",
    ]


def test_flags_are_passes_of_the_section(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: dict[str, Any] = {}

    def compress(run: Path, data: None, **wanted: Any) -> Path:
        given.update(wanted)
        raise CapabilityError(problem="seen")

    monkeypatch.setattr("fmdist.stages.compress", compress)
    words = ["--fold", "--quantize-aware", "--finetune-epochs", "2", "--min-speedup", "3", "--no-keep-stages"]
    assert main(["compress", str(tmp_path), *words]) == 2
    assert given["passes"] == {"fold": {}, "quantize_aware": {"finetune": {"epochs": 2}}}
    assert given["settings"] == {"search": {"min_speedup": 3.0}, "keep_stages": False}
