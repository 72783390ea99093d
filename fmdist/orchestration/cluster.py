"""The Ray cluster that a command uses: one that runs, or one of its own for as long as it needs it."""

from __future__ import annotations

import importlib
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress

import ray

from fmdist.background import running
from fmdist.environment import kept_variables
from fmdist.errors import CapabilityError, UsageError

POLL_SECONDS = 0.1
"""How often Ray Train looks after its workers; at its default of 2 s every report waits that long."""

KNOCK_SECONDS = 10.0
"""How long a cluster's port may take to answer."""

_OWN = "FMDIST_CLUSTER"
"""Variable that holds the address of the cluster that this process has started."""

logger = logging.getLogger(__name__)


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start one on this machine, and leave it as it was found.

    Args:
        address: of a running cluster (``auto``, ``HOST:PORT``); None takes the job's own inside of a Ray job,
            and else starts one.

    Raises:
        UsageError: if nothing answers there.
    """
    if ray.is_initialized():
        yield
        return
    with kept_variables():
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", str(POLL_SECONDS))
        # One process less for each attempt: `fmdist.orchestration.overseer` looks after machines that leave.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        try:
            # It takes seconds, most of which go by in other processes.
            with running(_import_trainer, "imports"):
                _connect(address or os.environ.get("RAY_ADDRESS"))
            yield
        finally:
            ray.shutdown()


def _import_trainer(done: threading.Event) -> None:
    importlib.import_module("ray.train.torch")


def _connect(address: str | None) -> None:
    try:
        if address is None:
            _start()
            return
        _knock(address)
        ray.init(address=address, logging_level=logging.WARNING)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            field="--address",
            problem=f"no Ray cluster answers there ({reason})",
            value=address,
            fix="start one with 'ray start --head', or leave --address out to train on this machine",
        ) from error


def free_port() -> int:
    """Return a port on which nothing listens, below those that the kernel gives to who asks, such as Ray."""
    while True:
        port = 20000 + secrets.randbelow(12000)
        with socket.socket() as free, suppress(OSError):
            free.bind(("", port))
            return port


def _start() -> None:
    """Start a cluster on this machine whose processes find it again, whatever else runs here."""
    # Left to themselves, Ray Train's helpers ask the machine's last cluster, which may long be dead: each run
    # would end 12 s later with a traceback, and nothing would be cleaned up after a lost controller.
    port = free_port()
    here: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    os.environ |= {
        "RAY_GCS_SERVER_PORT": str(port),
        "RAY_ADDRESS": f"{here}:{port}",
        "RAY_TRAIN_METRICS_ENABLED": "0",
    }
    # Nobody looks at a cluster that lives as long as a command: eight processes less to start.
    ray.init(address="local", logging_level=logging.WARNING, include_dashboard=False)
    os.environ[_OWN] = ray.get_runtime_context().gcs_address


def is_own() -> bool:
    """Return whether the cluster that this process is connected to was started by it."""
    return bool(ray.get_runtime_context().gcs_address == os.environ.get(_OWN))


def _knock(address: str | None) -> None:
    """Raise OSError if nothing listens at ``HOST:PORT``: Ray itself would try for two minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()


def wait_for(
    each: Mapping[str, float], workers: int, placement: str, seconds: float, ended: threading.Event
) -> None:
    """Return once the cluster's machines can hold the workers, or the event is set.

    Args:
        each: what a worker needs: resource (``CPU``, ``GPU``) -> how much.
        workers: how many there are.
        placement: see `fmdist.training.scaling.ScalingConfig`.
        seconds: how long to wait for machines that are still to come.
        ended: set when there is no more use in waiting.

    Raises:
        CapabilityError: if they can't by then.
    """
    until = time.monotonic() + seconds
    told = False
    needed = ", ".join(f"{workers * amount:g} {name}" for name, amount in each.items())
    if placement.startswith("strict"):
        needed += f" on {workers if placement == 'strict_spread' else 1} machine(s)"
    while not ended.is_set():
        there = machines()
        if room(there, each, placement) >= workers:
            return
        if time.monotonic() >= until:
            raise CapabilityError(
                field="scaling.workers",
                problem=f"the cluster hasn't what the workers need: {needed}",
                value="; ".join(
                    ", ".join(f"{machine.get(name, 0.0):g} {name}" for name in each) for machine in there
                ),
                fix="ask for fewer workers or less for each (scaling.cpus_per_worker), or wait for machines "
                "with scaling.wait_seconds",
            )
        if not told:
            logger.info("waiting for %s", needed)
            told = True
        ended.wait(min(1.0, POLL_SECONDS + until - time.monotonic()))


def machines() -> list[Mapping[str, float]]:
    """Return what each machine has of every resource, of those that live and weren't told to leave."""
    nodes, gone = ray.nodes(), leaving()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in nodes if node["Alive"] and node["NodeID"] not in gone]


def leaving() -> frozenset[str]:
    """Return the machines that are to be taken away (drained, preempted), by their identifiers."""
    # Ray tells its own trainer so; there is no public call that isn't a barrier of all workers.
    return frozenset(ray._private.state.state.get_draining_nodes())


def room(machines: Sequence[Mapping[str, float]], each: Mapping[str, float], placement: str) -> int:
    """Return how many workers fit on machines.

    Args:
        machines: resource -> how much, of each that lives.
        each: what a worker needs of them.
        placement: see `fmdist.training.scaling.ScalingConfig`.
    """
    fitting = [
        min(int(machine.get(name, 0.0) / amount + 1e-9) for name, amount in each.items())
        for machine in machines
    ]
    if placement == "strict_spread":
        return sum(count > 0 for count in fitting)
    return max(fitting, default=0) if placement == "strict_pack" else sum(fitting)
