"""ONNX Runtime's static quantization as its documentation calls it: prepared, QDQ, weights per channel."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from benchmarks.compression_peers.job import read, tell


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """One sample at a time."""

    def __init__(self, name: str, rows: NDArray[Any]) -> None:
        self._rows: Iterator[dict[str, NDArray[Any]]] = iter([{name: row[None]} for row in rows])

    def get_next(self) -> dict[str, NDArray[Any]] | None:
        """Return the next sample, or None after the last."""
        return next(self._rows, None)


def main() -> None:
    """Quantize."""
    job = read()
    began = time.perf_counter()
    prepared, file = str(Path(job.output) / "prepared.onnx"), str(Path(job.output) / "model.onnx")
    quant_pre_process(job.onnx, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared, file, Reader(job.input, job.rows()), quant_format=QuantFormat.QDQ, per_channel=True
    )
    tell(job, began, {"onnxruntime": file})


if __name__ == "__main__":
    main()
