"""A training command that is killed, and what is seen of its run from outside."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fmdist import storage
from fmdist.training.run import RECORD
from tests.distributed.head import Head
from tests.integration.command_line import FMDIST

WORKER, CONTROLLER = "RayTrainWorker", "TrainController"

LONGEST = 240.0
"""Seconds that anything may take before the sweep gives up."""


class Command:
    """``fmdist train`` on a cluster that stays, started again where it was killed.

    Args:
        cluster: where its workers are.
        recipe: of the run.
        folder: of the run.
    """

    def __init__(self, cluster: Head, recipe: Path, folder: Path) -> None:
        self.folder = folder
        self._cluster = cluster
        self._words = [FMDIST, "train", str(recipe), "-o", str(folder), "--address", cluster.address]
        self._log = folder.with_suffix(".log")
        self._process: subprocess.Popen[str] | None = None
        self._gone: set[int] = set()
        """Workers and controllers of attempts that a kill has ended."""

    def start(self) -> None:
        """Start it, for the first time or again."""
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                self._words,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=log,
                text=True,
                env=self._cluster.environment,
            )

    def said(self) -> str:
        """Return all that it and its workers have written to stderr."""
        return self._log.read_text()

    def wait(self, true: Callable[[], bool]) -> bool:
        """Return True once something is so, False if the command has ended before."""
        until = time.monotonic() + LONGEST
        while not true():
            if self._running().poll() is not None:
                return False
            if time.monotonic() > until:
                message = f"{self.folder} never came to that:\n{self.said()}"
                raise RuntimeError(message)
            time.sleep(0.002)
        return True

    def finish(self) -> None:
        """Wait for its end.

        Raises:
            RuntimeError: if it failed.
        """
        code = self._running().wait(LONGEST)
        if code and not self._finished():
            message = f"{self.folder} ended with {code}:\n{self.said()}"
            raise RuntimeError(message)

    def kill(self, kind: str, draw: random.Random) -> bool:
        """Kill a worker, the controller, or the driver, which is started again; False if it's too late."""
        workers, controllers = (self._cluster.actors(name) - self._gone for name in (WORKER, CONTROLLER))
        driver = self._running()
        victims = {"worker": sorted(workers), "controller": sorted(controllers), "driver": [driver.pid]}[kind]
        if not victims or driver.poll() is not None:
            return False
        os.kill(draw.choice(victims), signal.SIGKILL)
        self._gone |= workers | controllers
        if kind == "driver":
            driver.wait()
            # A kill after the last write leaves nothing to do.
            if not self._finished():
                self.start()
        return True

    def wait_for_the_killed(self) -> int:
        """Return the last step that was made, once the workers that made it have ended."""
        made = self.last_step()
        until = time.monotonic() + LONGEST
        while any(Path(f"/proc/{number}").exists() for number in self._gone):
            if time.monotonic() > until:
                message = f"{self.folder}: Ray doesn't end its workers"
                raise RuntimeError(message)
            # A new leading worker cuts the file back to where it goes on.
            made = max(made, self.last_step())
            time.sleep(0.005)
        return max(made, self.last_step())

    def has_workers(self) -> bool:
        """Return whether both workers of the present attempt are there."""
        time.sleep(0.1)  # reading all processes is dear
        return len(self._cluster.actors(WORKER) - self._gone) == 2

    def last_step(self) -> int:
        """Return the last step that was recorded."""
        with (
            suppress(FileNotFoundError, IndexError, ValueError),
            (self.folder / "metrics.jsonl").open("rb") as file,
        ):
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            return int(json.loads(file.read().splitlines()[-1])["step"])
        return 0

    def newest(self) -> int:
        """Return the step of the newest checkpoint; 0 without one."""
        found = sorted(self.folder.glob("checkpoints/step-*"))
        return int(found[-1].name[5:15]) if found else 0

    def saves(self) -> bool:
        """Return whether a checkpoint is being written or removed, or was when its writer was killed."""
        try:
            names = os.listdir(self.folder / "checkpoints")  # noqa: PTH208 - asked a thousand times a second
        except FileNotFoundError:
            return False
        return any(name.startswith(".step-") for name in names)

    def _finished(self) -> bool:
        record = self.folder / RECORD
        return record.exists() and storage.read_json(record)["status"] == "finished"

    def _running(self) -> subprocess.Popen[str]:
        assert self._process is not None
        return self._process
