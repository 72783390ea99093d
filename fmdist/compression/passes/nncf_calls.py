"""What every pass by NNCF needs: calibration samples as NNCF takes them, and silence."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from numpy.typing import NDArray

from fmdist.compression.passes.base import Workbench


def calibration_samples(bench: Workbench) -> Any:
    """Return the calibration samples as an ``nncf.Dataset``, one by one."""
    import nncf

    def sample(row: int) -> dict[str, NDArray[Any]]:
        return {name: value[row : row + 1] for name, value in bench.calibration.items()}

    return nncf.Dataset(range(sample_count(bench)), sample)


def sample_count(bench: Workbench) -> int:
    """Return how many calibration samples there are."""
    return len(next(iter(bench.calibration.values())))


@contextmanager
def quiet_nncf() -> Iterator[list[str]]:
    """Keep NNCF's progress bars off stdout, which belongs to ``--json``, and its log for errors.

    Yields:
        What it logs meanwhile: some of what it leaves out it tells nowhere else.
    """
    from nncf.common.logging import nncf_logger

    heard: list[str] = []

    def only_errors(record: logging.LogRecord) -> bool:
        heard.append(record.getMessage())
        return record.levelno >= logging.ERROR

    # Not nncf.set_log_level, which changes handlers too, whoever put them there.
    nncf_logger.setLevel(logging.INFO)
    nncf_logger.addFilter(only_errors)
    # Says on every machine without a GPU that there is none.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield heard
    finally:
        nncf_logger.removeFilter(only_errors)
        nncf_logger.setLevel(logging.ERROR)
