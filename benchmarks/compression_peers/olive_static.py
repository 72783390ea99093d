"""Olive's OnnxStaticQuantization pass on the ONNX model, with its defaults."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from olive import run
from olive.data.registry import Registry

from benchmarks.compression_peers.job import read, tell


class Rows:
    """Samples as Olive's loader takes them: inputs by name, and a label that nobody reads."""

    def __init__(self, name: str, rows: NDArray[Any]) -> None:
        self._name, self._rows = name, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[dict[str, NDArray[Any]], int]:
        return {self._name: self._rows[index]}, 0


def main() -> None:
    """Run a workflow of one pass."""
    job = read()
    began = time.perf_counter()
    rows = job.rows()

    @Registry.register_dataset("calibration_rows")  # type: ignore[untyped-decorator]
    def calibration_rows(data_dir: str | None = None) -> Rows:
        return Rows(job.input, rows)

    folder = Path(job.output)
    workflow = {
        "input_model": {"type": "ONNXModel", "model_path": job.onnx},
        "data_configs": [
            {
                "name": "calibration",
                "load_dataset_config": {"type": "calibration_rows"},
                "pre_process_data_config": {"type": "skip_pre_process"},
                "dataloader_config": {"batch_size": 1},
            }
        ],
        "passes": {"quantize": {"type": "OnnxStaticQuantization", "data_config": "calibration"}},
        "cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "olive"),
        "evaluate_input_model": False,
    }
    output = run(workflow)
    best = output.get_best_candidate()
    if best is None:
        message = "Olive's workflow made no model"
        raise RuntimeError(message)
    shutil.copy(best.model_path, folder / "model.onnx")
    tell(job, began, {"onnxruntime": str(folder / "model.onnx")}, "weights per tensor, its default")


if __name__ == "__main__":
    main()
