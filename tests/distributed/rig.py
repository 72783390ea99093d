"""Workers in processes of their own, without Ray: what they do is the same, and they start in seconds."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from fmdist.contracts import Context
from fmdist.training.scaling import ScalingConfig

PRELOADED = ["deepspeed", "torch.distributed.fsdp", "sklearn.datasets", "fmdist.training.session"]
"""Imported once for all workers: that takes longer than what they do."""


def alone(scaling: ScalingConfig, address: str | None) -> AbstractContextManager[None]:
    """Stand in for `fmdist.orchestration.overseer.ready`."""
    return nullcontext()


def train_in_processes(
    work: Callable[[Context], None], scaling: ScalingConfig, folder: Path, sizes: Sequence[int]
) -> None:
    """Stand in for `fmdist.orchestration.workers.train_on_workers`."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
    size = sizes[-1]
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(PRELOADED)
    workers = [server.Process(target=_work, args=(work, rank, size, port)) for rank in range(size)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=240)
    assert [worker.exitcode for worker in workers] == [0] * size


def _work(work: Callable[[Context], None], rank: int, size: int, port: int) -> None:
    import torch.distributed as dist

    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", **{name: str(value) for name, value in place.items()}}
    dist.init_process_group("gloo", rank=rank, world_size=size)
    try:
        work(Context(rank, size, "cpu"))
    finally:
        if dist.is_initialized():  # Accelerate ends it too
            dist.destroy_process_group()


def records(folder: Path) -> list[dict[str, Any]]:
    """Return what a run has recorded, but for its times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "samples_per_s")
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]
