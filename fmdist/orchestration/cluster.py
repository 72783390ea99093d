"""The Ray cluster that a command uses: one that runs, or one of its own for as long as it needs it."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import ray

from fmdist.environment import kept_variables
from fmdist.errors import CapabilityError, UsageError

POLL_SECONDS = 0.1
"""How often Ray Train looks after its workers; at its default of 2 s every report waits that long."""

KNOCK_SECONDS = 10.0
"""How long a cluster's port may take to answer."""

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
        _connect(address or os.environ.get("RAY_ADDRESS"))
        try:
            yield
        finally:
            ray.shutdown()


def _connect(address: str | None) -> None:
    try:
        _knock(address)
        ray.init(address=address or "local", logging_level=logging.WARNING)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(
            field="--address",
            problem=f"no Ray cluster answers there ({reason})",
            value=address,
            fix="start one with 'ray start --head', or leave --address out to train on this machine",
        ) from error


def _knock(address: str | None) -> None:
    """Raise OSError if nothing listens at ``HOST:PORT``: Ray itself would try for two minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=KNOCK_SECONDS).close()


def room(each: Mapping[str, float], placement: str) -> int:
    """Return for how many workers the cluster's machines are large enough, whatever runs there now.

    Machines that are about to leave (drained, preempted) don't count.

    Args:
        each: resource (``CPU``, ``GPU``) -> what a worker needs of it.
        placement: as in the recipe's ``scaling.placement``.
    """
    leaving = _leaving()
    fits = [
        int(min(node["Resources"].get(name, 0.0) // amount for name, amount in each.items()))
        for node in ray.nodes()  # type: ignore[no-untyped-call]
        if node["Alive"] and node["NodeID"] not in leaving
    ]
    if placement == "strict_pack":
        return max(fits, default=0)
    if placement == "strict_spread":
        return sum(1 for size in fits if size)
    return sum(fits)


def wait_for_room(each: Mapping[str, float], placement: str, workers: int, seconds: float) -> int:
    """Return the cluster's `room`, once it is enough.

    Args:
        each: see `room`.
        placement: see `room`.
        workers: how many there must be room for.
        seconds: how long to wait for machines that are still to come.

    Raises:
        CapabilityError: if there isn't by then.
    """
    until = time.monotonic() + seconds
    told = False
    while (found := room(each, placement)) < workers:
        needed = {name: workers * amount for name, amount in each.items()}
        if time.monotonic() >= until:
            has: Mapping[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
            there = ", ".join(f"{has.get(name, 0.0):g} {name}" for name in each)
            spread = f" with placement {placement}" if placement.startswith("strict") else ""
            raise CapabilityError(
                field="scaling.workers",
                problem=f"the cluster hasn't what the workers need: {_listed(needed)}{spread}",
                value=f"{there}, room for {found}",
                fix="ask for fewer workers or less for each (scaling.cpus_per_worker), or wait for machines "
                "with scaling.wait_seconds",
            )
        if not told:
            logger.info("waiting for %s", _listed(needed))
            told = True
        time.sleep(min(1.0, POLL_SECONDS + until - time.monotonic()))
    return found


def _listed(amounts: Mapping[str, float]) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in amounts.items())


def _leaving() -> frozenset[str]:
    """Return the machines that Ray was told will be taken away."""
    # Ray tells its own trainer so; there is no public call that isn't a barrier of all workers.
    return frozenset(ray._private.state.state.get_draining_nodes())
