"""What listens to a training run: the metrics file, the trackers, the progress line, the profiler."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fmdist import storage
from fmdist.console import Progress

if TYPE_CHECKING:
    from fmdist.training.engine import Engine

logger = logging.getLogger(__name__)

PROFILE_SKIP, PROFILE_STEPS = 5, 20
"""Steps left out of a profile while caches warm up, and steps traced."""


class StepListener(Protocol):
    """Hears of every step; a call costs every step its time."""

    def step(self, done: int, loss: Callable[[], float]) -> None:
        """Hear that optimizer step ``done`` (from 1) is made; ``loss()`` is the running mean."""
        ...


class RecordListener(Protocol):
    """Hears of every record that goes into metrics.jsonl."""

    def record(self, values: Mapping[str, Any]) -> None:
        """Hear a record: ``split``, ``epoch``, ``step`` and numbers."""
        ...


class MetricsFile:
    """``metrics.jsonl``: one JSON object per record; cut back to the checkpoint when a run resumes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def record(self, values: Mapping[str, Any]) -> None:
        """Append a record."""
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()

    def synced_size(self) -> int:
        """Return the file's size in bytes once it is on disk; a checkpoint stores it."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._path.stat().st_size

    def cut(self, size: int) -> None:
        """Forget the records written after ``size`` bytes, and a torn last one if the file is shorter."""
        found = self._path.stat().st_size
        if found < size:
            logger.warning("%s has lost records: %d bytes of %d are left", self._path, found, size)
            size = self._path.read_bytes().rfind(b"\n") + 1
        if size < found:
            os.truncate(self._path, size)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Trackers:
    """TensorBoard, W&B, MLflow: numbers as ``split/name``."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def record(self, values: Mapping[str, Any]) -> None:
        """Send a record's numbers."""
        numbers = {
            f"{values['split']}/{name}": value
            for name, value in values.items()
            if name not in ("split", "step", "epoch", "seconds") and isinstance(value, float | int)
        }
        self._engine.log(numbers, values["step"])


class ProgressLine:
    """The live line: steps, rate, ETA, the running loss and the last evaluation's primary metric."""

    def __init__(self, total: int, primary: str) -> None:
        self._total = total
        self._primary = primary
        self._line: Progress | None = None
        self._shown: dict[str, float] = {}
        self._done = 0

    def __enter__(self) -> ProgressLine:
        return self

    def __exit__(self, *error: object) -> None:
        if self._line is not None:
            self._line.close(self._done, self._shown)

    def step(self, done: int, loss: Callable[[], float]) -> None:
        """Draw, if it is time to."""
        self._done = done
        if self._line is None:
            # The steps that a resumed run made before are no part of this process's rate.
            self._line = Progress("training", self._total, initial=done - 1)
        if self._line.due():
            self._shown["loss"] = loss()
            self._line.update(done, self._shown)

    def record(self, values: Mapping[str, Any]) -> None:
        """Keep an evaluation's primary metric on the line."""
        if values["split"] == "validation":
            self._shown[f"validation {self._primary}"] = values[self._primary]


class Stopwatch:
    """Adds up where a step's wall time goes; `lap` names the part that has just ended."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, part: str) -> None:
        """Count the time since the last lap as ``part``."""
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now


class NoStopwatch(Stopwatch):
    """Measures nothing; for runs without a profile."""

    def lap(self, part: str) -> None:
        """Do nothing."""


class Profiler(Stopwatch):
    """Traces some steps with torch.profiler and writes ``trace.json`` and ``table.txt``."""

    def __init__(self, folder: Path) -> None:
        import torch

        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        activities = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._trace = torch.profiler.profile(activities=activities)
        self._steps = 0
        self._finished = False

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *error: object) -> None:
        self.finish()

    def step(self, done: int, loss: Callable[[], float]) -> None:
        """Start the trace after the first steps and end it when enough are seen."""
        self._steps += 1
        if self._steps == PROFILE_SKIP:
            self.seconds.clear()
            self._trace.start()
        elif self._steps == PROFILE_SKIP + PROFILE_STEPS:
            self.finish()
        self._last = time.perf_counter()

    def finish(self) -> None:
        """Write what was traced; nothing if the run was too short to begin."""
        if self._finished:
            return
        self._finished = True
        if self._steps >= PROFILE_SKIP:
            self._trace.stop()
        if self._steps <= PROFILE_SKIP:
            logger.warning("--profile: nothing was traced, the first %d steps are left out", PROFILE_SKIP)
            return
        self._trace.export_chrome_trace(str(self._folder / "trace.json"))
        traced = min(self._steps - PROFILE_SKIP, PROFILE_STEPS)
        storage.write_text(self._folder / "table.txt", self._table(traced))

    def _table(self, traced: int) -> str:
        total = sum(self.seconds.values()) or 1.0
        lines = [f"{'part of the step':<20}{'ms per step':>14}{'share':>9}"]
        for part, seconds in sorted(self.seconds.items(), key=lambda item: -item[1]):
            lines.append(f"{part:<20}{1000 * seconds / max(1, traced):>14.3f}{seconds / total:>9.1%}")
        operators = self._trace.key_averages().table(sort_by="self_cpu_time_total", row_limit=20)
        return "\n".join(lines) + f"\n\nover {traced} steps; operators:\n\n{operators}\n"


@contextmanager
def metrics_file(path: Path) -> Iterator[MetricsFile]:
    """Yield the run's metrics file and close it."""
    file = MetricsFile(path)
    try:
        yield file
    finally:
        file.close()


def tell(listeners: Sequence[RecordListener], values: Mapping[str, Any]) -> None:
    """Give a record to every listener."""
    for listener in listeners:
        listener.record(values)
