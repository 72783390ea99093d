"""An ExecuTorch program of a trained model, in an environment that has ExecuTorch: it isn't one of ours."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks.compression_peers import environments
from tests.integration.command_line import RECIPE

RUN = "import sys; from fmdist.cli.main import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.slow
@pytest.mark.sweep
@pytest.mark.timeout(900)
def test_a_compressed_model_runs_in_executorch(tmp_path: Path) -> None:
    python = environments.interpreter("executorch", "executorch>=1.5")
    (tmp_path / "life.yaml").write_text(RECIPE)
    words = [str(python), "-c", RUN, "run", "life.yaml", "compress.programs=[torch_export, executorch]"]
    surroundings = environments.surroundings()
    done = subprocess.run(words, cwd=tmp_path, env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "artifacts" / "life" / "manifest.json").read_text())
    assert set(manifest["programs"]) == {"torch_export", "executorch"}
    for record in manifest["programs"].values():
        assert record["difference"] <= 1e-5
        assert manifest["files"][record["file"]]["bytes"] == record["bytes"]
