"""What holds for every test: one CPU thread, and nothing left behind."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from fmdist.contracts import Task
    from fmdist.data.splits import DataSplits
    from fmdist.training.loop import Progress

# Two workers of pytest-xdist share two cores; torch and OpenVINO read this when they are loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

_LIBRARIES = (
    *("PYTEST_", "KMP_", "TORCHINDUCTOR_", "TRITON_", "TORCH_", "PYTORCH_", "CUDA_MODULE_LOADING"),
    "RAY_CLIENT_MODE",
)
"""Libraries set these for themselves when they are first loaded."""


@pytest.fixture(autouse=True)
def leaves_nothing_behind() -> Iterator[None]:
    """Fail a test that changes the environment, our logging or a signal, or leaves a process or a thread."""
    signals = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    environment, loggers, threads = _environment(), _logging(), set(threading.enumerate())
    children = set(multiprocessing.active_children())
    yield
    now = _environment()
    changed = sorted(
        name for name in environment.keys() | now.keys() if environment.get(name) != now.get(name)
    )
    assert not changed, f"the test left environment variables changed: {changed}"
    assert _logging() == loggers, "the test left a logger changed"
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == signals
    assert not set(multiprocessing.active_children()) - children
    left = [thread for thread in set(threading.enumerate()) - threads if not thread.daemon]
    for thread in left:
        thread.join(timeout=5)
    assert not [thread for thread in left if thread.is_alive()]


def _logging() -> tuple[list[logging.Handler], int, bool, int]:
    logger = logging.getLogger("fmdist")
    return list(logger.handlers), logger.level, logger.propagate, logging.root.level


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(_LIBRARIES)}


class Fit(Protocol):
    """Train a task into a folder, or go on there; returns where training ended."""

    def __call__(
        self,
        task: Task,
        data: DataSplits,
        train: Mapping[str, Any],
        folder: Path,
        seed: int = 0,
        profile: bool = False,
    ) -> Progress: ...


@pytest.fixture
def fit() -> Fit:
    """`fmdist.training.session.train_run` with a task that the test has built."""
    from fmdist.contracts import Context
    from fmdist.training.config import TrainConfig
    from fmdist.training.run import begin, open_run
    from fmdist.training.session import train_run

    def run(
        task: Task,
        data: DataSplits,
        train: Mapping[str, Any],
        folder: Path,
        seed: int = 0,
        profile: bool = False,
    ) -> Progress:
        config = TrainConfig.model_validate(train)
        recipe = {"name": "test", "seed": seed, "train": config.model_dump(mode="json")}
        with open_run(folder, recipe) as opened:
            begin(opened, recipe, {}, {})
            return train_run(opened, task, data, config, seed, Context(), profile)

    return run
