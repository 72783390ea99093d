"""Two hosts on this machine, each a set of namespaces, and a Ray cluster with token authentication over them.

A host has its own network, processes, mounts and name: it has its own address, its own shared memory and its
own ``/tmp/ray``, and can be killed as a whole. The switch between them is a namespace too. All of it is held
by processes that we started, and the kernel removes it with them: nothing is left behind or collides.
Other folders are this machine's: they stand in for storage that the hosts share.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CPUS = 2
"""That Ray has on each host."""

ADDRESS = "10.77.0.{}"
GCS, DASHBOARD = 6379, 8265

HEALTH = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "8",
}
"""Ray takes a silent host for lost in 20 s, where by default it takes a minute."""

TOOLS = ("ip", "unshare", "nsenter", "setpriv")

NAMESPACES = ("--net", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc")

# The first process of a host; a shell, since it must also reap what others leave.
INIT = """\
set -eu
mount --bind "$2" /etc/hosts
mount --bind /dev/null /etc/resolv.conf
hostname "host$1"
mount -t tmpfs -o size=1g tmpfs /dev/shm
mkdir -p /tmp/ray
mount -t tmpfs tmpfs /tmp/ray
echo ready
sleep infinity & wait
"""

KNOCK = """\
import sys, time, urllib.error, urllib.request
for _ in range(600):
    try:
        urllib.request.urlopen(sys.argv[1])
    except urllib.error.HTTPError:
        break
    except OSError:
        time.sleep(0.1)
    else:
        break
else:
    sys.exit("no answer")
"""
"""Ends once the address answers, be it that a token is missing."""


class Hosts:
    """The switch and the hosts 1 and 2; `two_hosts` starts and ends them.

    Args:
        folder: for logs and the token.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._switch = _held("unshare", "--net", "bash", "-c", "echo ready; exec sleep infinity")
        self._hosts: dict[int, subprocess.Popen[str]] = {}
        self._rays: list[subprocess.Popen[str]] = []
        self._links = 0
        token = folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self.token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
        self.api = f"http://{ADDRESS.format(1)}:{DASHBOARD}"

    def connect(self) -> None:
        """Set the switch up; this machine's other processes reach the hosts through `outside` only."""
        for words in (
            "link set lo up",
            # Without an address of its own it would take a port's, and another one when a host comes back.
            "link add switch address 02:00:00:00:00:fe type bridge",
            f"addr add {ADDRESS.format(254)}/24 dev switch",
            "link set switch up",
        ):
            _check(["nsenter", f"--target={self._switch.pid}", "--net", "ip", *words.split()])

    def start(self, number: int) -> None:
        """Start a host, and Ray on it: the first one is the head."""
        names = self.folder / "hosts"
        lines = [f"{ADDRESS.format(each)} host{each}" for each in (1, 2)]
        names.write_text("\n".join(["127.0.0.1 localhost", *lines]) + "\n")
        shell = ("bash", "-c", INIT, "init", str(number), str(names))
        self._hosts[number] = _held("unshare", *NAMESPACES, *shell)
        self._links += 1
        port, host = f"port{self._links}", _child(self._hosts[number].pid)
        # The address of the hardware stays, or the other host would go on sending to the one that was.
        mine = f"link add {port} type veth peer name eth0 netns {host} address 02:00:00:00:00:0{number}"
        for words in (mine, f"link set {port} master switch up"):
            _check(["nsenter", f"--target={self._switch.pid}", "--net", "ip", *words.split()])
        for words in (
            "link set lo up",
            f"addr add {ADDRESS.format(number)}/24 dev eth0",
            "link set eth0 up",
            f"route add default via {ADDRESS.format(254)}",
        ):
            _check([*self.on(number), "ip", *words.split()])
        self._start_ray(number)

    def _start_ray(self, number: int) -> None:
        place = ["--address", f"{ADDRESS.format(1)}:{GCS}"]
        if number == 1:
            dashboard = ["--dashboard-host", ADDRESS.format(1), "--dashboard-port", str(DASHBOARD)]
            place = ["--head", "--port", str(GCS), *dashboard]
        common = ["--num-cpus", str(CPUS), "--object-store-memory", "100000000", "--disable-usage-stats"]
        command = [*self.on(number), "ray", "start", *place, "--node-ip-address", ADDRESS.format(number)]
        with (self.folder / f"ray-{number}.log").open("a") as log:
            self._rays.append(
                subprocess.Popen(
                    [*command, *common, "--block"],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    text=True,
                    env=self.environment() | HEALTH,
                )
            )
        if number == 1:
            _check([*self.on(1), sys.executable, "-c", KNOCK, f"{self.api}/api/version"])

    def kill(self, number: int) -> None:
        """Pull a host's cable, then kill all its processes: nobody hears of its end."""
        _check([*self.on(number), "ip", "link", "set", "eth0", "down"])
        held = self._hosts.pop(number)
        _end(held)

    def on(self, number: int) -> list[str]:
        """Return the words before a command that is to run on a host."""
        host = _child(self._hosts[number].pid)
        return ["nsenter", f"--target={host}", "--net", "--mount", "--uts", "--pid", f"--wd={Path.cwd()}"]

    def outside(self) -> list[str]:
        """Return the words before a command that is to run beside the hosts, connected to their switch."""
        return ["nsenter", f"--target={self._switch.pid}", "--net"]

    def environment(self, token: bool = True) -> dict[str, str]:
        """Return a command's variables: this Python's programs, and the token if it is to have it."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        ours["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{ours.get('PATH', os.defpath)}"
        ours |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_API_SERVER_ADDRESS": self.api}
        return ours | (self.token if token else {})

    def processes(self, number: int) -> list[str]:
        """Return the command lines of a host's processes."""
        inside = Path(f"/proc/{_child(self._hosts[number].pid)}/ns/pid").readlink()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if (folder / "ns/pid").readlink() == inside:
                    line = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                    found.append(line.decode(errors="replace"))
            except OSError:
                continue
        return found

    def down(self) -> None:
        """End all processes, and with them the namespaces."""
        for held in (*self._hosts.values(), self._switch):
            _end(held)
        for ray in self._rays:
            _end(ray)


@contextmanager
def two_hosts(folder: Path) -> Iterator[Hosts]:
    """Yield two hosts with a Ray cluster over them; skip the test where there can't be any."""
    if os.geteuid() != 0:
        pytest.skip("two hosts need root, for namespaces")
    if missing := [tool for tool in TOOLS if shutil.which(tool) is None]:
        pytest.skip(f"two hosts need {', '.join(missing)} (Debian: iproute2, util-linux)")
    refused = subprocess.run(
        ["unshare", *NAMESPACES, "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    if refused.returncode:
        pytest.skip(f"two hosts need namespaces, which are not permitted here: {refused.stderr.strip()}")
    hosts = Hosts(folder)
    try:
        try:
            hosts.connect()
        except RuntimeError as error:
            pytest.skip(f"two hosts need a bridge, which this kernel doesn't have: {error}")
        for number in (1, 2):
            hosts.start(number)
        yield hosts
    finally:
        hosts.down()


def _held(*words: str) -> subprocess.Popen[str]:
    """Start a process that is killed with this one, and return once it has said so."""
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said = process.stdout.readline()
    if said != "ready\n":
        _end(process)
        message = f"{' '.join(words[:2])} ... ended with {process.returncode}"
        raise RuntimeError(message)
    return process


def _end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _child(pid: int) -> int:
    """Return the first process of a host: the child of the `unshare` that holds it."""
    for _ in range(100):
        if found := Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            return int(found[0])
        time.sleep(0.01)
    message = "the host has ended"
    raise RuntimeError(message)


def _check(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        message = f"{' '.join(command[:20])}: {done.stderr.strip()}"
        raise RuntimeError(message)
