"""`fmdist` as a user types it, in this process or in one of its own, and the small run that tests share."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from fmdist.cli.main import main

FMDIST = str(Path(sys.executable).with_name("fmdist"))

RECIPE = """\
name: life
seed: 0
data: {kind: digits}
model: {kind: cnn, channels: [8, 16], blocks: 1}
task: {kind: classification}
train: {epochs: 3, lr: 2e-2, threads: 1, trackers: []}
compress:
  passes: [{kind: quantize, ranges: [mean], bias_correction: [none]}]
  max_drop: 0.2
  calibration_samples: 50
  benchmark: {samples: 10, batch_size: 16, torch_compile: false, memory: false}
"""
"""Trains in a second and is compressed in a few."""


SMALL: dict[str, Any] = {
    "name": "small",
    "seed": 0,
    "data": {"kind": "digits"},
    "model": {"kind": "cnn", "channels": [16, 32], "blocks": 1},
    "task": {"kind": "classification"},
    "train": {"epochs": 3, "lr": 5e-3, "threads": 1, "trackers": []},
}
"""Has channels to lose; a test adds what is done with it."""


class Done(NamedTuple):
    """What a command left: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON value on stdout."""
        return json.loads(self.out)


class Life(NamedTuple):
    """A folder with ``life.yaml``, ``runs/life`` and ``artifacts/life``; nobody writes into it."""

    folder: Path
    done: Done
    """Of ``fmdist run life.yaml``."""


def fmdist(folder: Path, *words: str | Path) -> Done:
    """Run a command line in ``folder``, in this process: importing torch anew takes seconds."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    return Done(code, out.getvalue(), err.getvalue())


def succeed(folder: Path, *words: str | Path) -> Done:
    """Run a command line that must go well."""
    done = fmdist(folder, *words)
    assert done.code == 0, done.err
    return done


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    """Start a command line in a process of its own."""
    return subprocess.Popen(
        [FMDIST, *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def stamps(folder: Path, pattern: str) -> dict[str, int]:
    """When each of these files was last written, by its path below ``folder``."""
    return {
        file.relative_to(folder).as_posix(): file.stat().st_mtime_ns
        for file in sorted(folder.glob(pattern))
        if file.is_file()
    }
