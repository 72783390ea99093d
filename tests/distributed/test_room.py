"""How many workers a cluster's machines can hold, and how long that is waited for."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import ray

from fmdist.errors import CapabilityError
from fmdist.orchestration import cluster, overseer
from fmdist.orchestration.cluster import room, wait_for
from fmdist.training.scaling import ScalingConfig

TWO: list[dict[str, float]] = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 2.0}]


@pytest.mark.parametrize(
    ("each", "placement", "workers"),
    [
        ({"CPU": 1.0}, "pack", 6),
        ({"CPU": 0.1}, "spread", 60),
        ({"CPU": 3.0}, "pack", 1),
        ({"CPU": 1.0, "GPU": 0.5}, "pack", 2),
        ({"CPU": 1.0}, "strict_spread", 2),
        ({"CPU": 3.0}, "strict_spread", 1),
        ({"CPU": 1.0}, "strict_pack", 4),
        ({"CPU": 8.0}, "strict_pack", 0),
    ],
)
def test_a_worker_needs_room_on_one_machine(each: dict[str, float], placement: str, workers: int) -> None:
    assert room(TWO, each, placement) == workers
    assert room([], each, placement) == 0


def machines(*alive: bool) -> list[dict[str, Any]]:
    return [
        {"Alive": one, "NodeID": str(number), "Resources": {"CPU": 2.0}} for number, one in enumerate(alive)
    ]


@pytest.fixture(autouse=True)
def stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "leaving", frozenset)


def test_a_dead_machine_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: machines(True, False))
    with pytest.raises(CapabilityError, match="2 CPU on 2 machine"):
        wait_for({"CPU": 1.0}, 2, "strict_spread", 0.1, threading.Event())
    wait_for({"CPU": 1.0}, 2, "spread", 0.0, threading.Event())


def test_a_machine_that_is_about_to_leave_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: machines(True, True))
    scaling = ScalingConfig(workers=(1, 4))
    assert overseer.possible(scaling, [1, 2, 4]) == 4
    monkeypatch.setattr(cluster, "leaving", lambda: frozenset("1"))
    assert overseer.possible(scaling, [1, 2, 4]) == 2


def test_a_machine_that_comes_back_and_a_signal_end_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = iter([machines(True, False), machines(True, True)])
    monkeypatch.setattr(ray, "nodes", lambda: next(seen))
    wait_for({"CPU": 1.0}, 2, "strict_spread", 1000.0, threading.Event())
    assert not list(seen)
    stopped = threading.Event()
    stopped.set()
    wait_for({"CPU": 1.0}, 2, "strict_spread", 1000.0, stopped)
