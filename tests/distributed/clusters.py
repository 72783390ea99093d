"""Ray as it really runs: its processes on this machine, and a head of a cluster of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from fmdist.orchestration.cluster import free_port


def processes() -> dict[int, str]:
    """Return the command lines of all Ray processes, by process id."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "raylet" in line or "gcs_server" in line or line.startswith("ray::"):
            found[int(folder.name)] = line
    return found


def until(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait for something that a running command does."""
    for _ in range(6000):
        if true():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    pytest.fail("it never came to that")


@contextmanager
def head(settings: Mapping[str, str]) -> Iterator[str]:
    """Start a cluster, give the address of its job API once it answers, and end all of its processes.

    Args:
        settings: environment variables of Ray's.
    """
    own = ("RAY_", "PYTHONPATH")
    others = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    binaries = Path(sys.executable).parent
    others |= {"PATH": f"{binaries}:{others['PATH']}", "OMP_NUM_THREADS": "1"}
    places = ("--port", "--dashboard-port", "--dashboard-agent-listen-port", "--ray-client-server-port")
    ports = dict(zip(places, _free_ports(len(places)), strict=True))
    # Ray's sockets have names of at most 107 bytes, so that pytest's folders are too deep.
    with tempfile.TemporaryDirectory(prefix="fmd-", ignore_cleanup_errors=True) as folder:
        words = [str(binaries / "ray"), "start", "--head", "--block", "--num-cpus=2", "--disable-usage-stats"]
        words += ["--dashboard-host=127.0.0.1", "--object-store-memory=100000000"]
        words += [f"{name}={port}" for name, port in ports.items()]
        # Where Ray's own processes look for their cluster, among others that this machine may have.
        environment = {**others, **settings, "RAY_TMPDIR": folder}
        process = subprocess.Popen(
            words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
        )
        started = {process.pid: _stat(process.pid)[19]}
        try:
            address = f"http://127.0.0.1:{ports['--dashboard-port']}"
            until(lambda: _answers(f"{address}/api/version"), process)
            yield address
        finally:
            started |= _below(process.pid)
            process.terminate()
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            left = _left(started)
    assert not left, f"left running: {left}"


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return error.code in (401, 403)
    except OSError:
        return False


def _free_ports(count: int) -> list[int]:
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


def _stat(number: int) -> list[str]:
    """Return the fields of a process after its name: its state, its parent, ..., when it started."""
    try:
        return (Path("/proc") / str(number) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _below(number: int) -> dict[int, str]:
    """Return the processes that a process has started, theirs too, and when they started."""
    stats = {int(folder.name): _stat(int(folder.name)) for folder in Path("/proc").glob("[0-9]*")}
    found: dict[int, str] = {}
    parents = {number}
    while parents:
        children = {child for child, stat in stats.items() if stat and int(stat[1]) in parents}
        parents = children - found.keys()
        found |= {child: stats[child][19] for child in parents}
    return found


def _left(started: Mapping[int, str]) -> list[int]:
    """Return which of these processes still run after a minute; a later one may have got a number."""

    def runs(number: int) -> bool:
        stat = _stat(number)
        return bool(stat) and stat[0] != "Z" and stat[19] == started[number]

    left = list(started)
    for _ in range(600):
        left = [number for number in left if runs(number)]
        if not left:
            break
        time.sleep(0.1)
    return left
