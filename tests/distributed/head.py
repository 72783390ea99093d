"""A Ray cluster of one machine that stays while commands come and go."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

HERE = "127.0.0.1"

RAY = str(Path(sys.executable).with_name("ray"))

CPUS = 2
"""Ray starts as many processes ahead for every command."""


class Process(NamedTuple):
    """A process of the cluster."""

    number: int
    parent: int
    line: str


class Head:
    """The cluster; `head` starts and ends it.

    Args:
        process: ``ray start --block``, the parent of all others.
        address: for ``--address``.
        environment: of commands that use it.
    """

    def __init__(self, process: subprocess.Popen[str], address: str, environment: Mapping[str, str]) -> None:
        self._process = process
        self.address = address
        self.environment = environment

    def processes(self) -> list[Process]:
        """Return the processes of the head's machine."""
        return below(self._process.pid)

    def actors(self, name: str) -> set[int]:
        """Return the numbers of the processes of an actor's class."""
        return {one.number for one in self.processes() if one.line.startswith(f"ray::{name}")}

    @contextmanager
    def machine(self, cpus: int) -> Iterator[subprocess.Popen[str]]:
        """Add a machine to the cluster, and end all of its processes."""
        words = [
            "start",
            "--address",
            self.address,
            "--node-ip-address",
            HERE,
            "--num-cpus",
            str(cpus),
            "--block",
        ]
        process = subprocess.Popen(
            [RAY, *words, "--object-store-memory", "100000000", "--disable-usage-stats"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            text=True,
            env=self.environment,
        )
        try:
            yield process
        finally:
            end(process)

    def end(self) -> None:
        """End all processes."""
        end(self._process)


def below(number: int) -> list[Process]:
    """Return the processes that a process has started, and theirs."""
    everything = list(_processes())
    ours = {number}
    found: list[Process] = []
    while True:
        more = [one for one in everything if one.parent in ours and one.number not in ours]
        if not more:
            return found
        found += more
        ours |= {one.number for one in more}


def end(process: subprocess.Popen[str]) -> None:
    """End a process and all below it, and wait until they have."""
    left = [one.number for one in below(process.pid)]
    process.kill()
    process.wait()
    for number in left:
        with suppress(ProcessLookupError):
            os.kill(number, signal.SIGKILL)
    while any(Path(f"/proc/{number}").exists() for number in left):
        time.sleep(0.05)


@contextmanager
def head(cpus: int = CPUS) -> Iterator[Head]:
    """Yield a cluster on ports of its own, so that it doesn't meet another one of this machine."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for one in sockets:
            one.bind((HERE, 0))
        ports = [one.getsockname()[1] for one in sockets]
    names = ("--port", "--ray-client-server-port")
    chosen = [word for name, port in zip(names, ports, strict=True) for word in (name, str(port))]
    # Ray asks for a token where the user has one, and a command then needs the same.
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    size = ["--num-cpus", str(cpus), "--object-store-memory", "100000000"]
    # In a folder of its own: the killed cluster would else be taken for the machine's current one for ever.
    with (
        tempfile.TemporaryDirectory(prefix="fmd-", ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile("w+") as log,
    ):
        environment = {**os.environ, **token, "OMP_NUM_THREADS": "1", "RAY_TMPDIR": folder}
        process = subprocess.Popen(
            [
                RAY,
                *("start", "--head", "--node-ip-address", HERE, *chosen, *size),
                *("--include-dashboard", "false", "--disable-usage-stats", "--block"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            text=True,
            env=environment,
        )
        cluster = Head(process, f"{HERE}:{ports[0]}", environment)
        try:
            while "--block" not in (said := os.pread(log.fileno(), 100_000, 0).decode()):
                if process.poll() is not None:
                    raise RuntimeError(said)
                time.sleep(0.1)
            yield cluster
        finally:
            cluster.end()


def _processes() -> Iterator[Process]:
    for folder in Path("/proc").glob("[0-9]*"):
        # A process may end while it is read.
        with suppress(OSError):
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            # The name, in brackets, may hold anything.
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            yield Process(int(folder.name), parent, line)
