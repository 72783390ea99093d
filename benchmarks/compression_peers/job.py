"""The job that every peer gets, and what it says in the end. Imports nothing that the clock shouldn't see."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAID = "said.json"


@dataclass(frozen=True)
class Job:
    """One trained model, in the forms that compressors take, and where a peer writes."""

    module: str
    """The eager module, pickled whole, in evaluation mode."""
    onnx: str
    """Its export, float32."""
    openvino: str
    """Its export, float32 (.xml)."""
    input: str
    """Name of the only input."""
    calibration: str
    """Training samples (N, ...), .npy."""
    test: str
    """Test samples (N, ...), .npy, in the shape in which they are scored."""
    timed: str
    """One sample (1, ...), .npy, in the shape in which latency is measured."""
    output: str
    """The peer's own folder."""
    settings: dict[str, Any]
    """Of this peer alone."""

    def write(self) -> Path:
        """Write the job into the peer's folder and return its file."""
        folder = Path(self.output)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "job.json"
        file.write_text(json.dumps(asdict(self)))
        return file

    def rows(self) -> NDArray[Any]:
        """Return the calibration samples."""
        rows: NDArray[Any] = np.load(self.calibration)
        return rows


def read() -> Job:
    """Return the job that the command line names."""
    return Job(**json.loads(Path(sys.argv[1]).read_text()))


def tell(job: Job, began: float, models: dict[str, str], note: str = "") -> None:
    """Say what was made.

    Args:
        job: of this peer.
        began: by `time.perf_counter`, after the imports.
        models: runtime -> the model's file; ``timed`` for one in the shape of `Job.timed`, where the runtime
            can't reshape a finished model.
        note: what a reader of the figures must know.
    """
    said = {"seconds": time.perf_counter() - began, "models": models, "note": note}
    (Path(job.output) / SAID).write_text(json.dumps(said))
