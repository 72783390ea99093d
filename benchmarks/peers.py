"""The training of `benchmarks.distributed` as a user writes it with bare torch DDP, Accelerate or Ray Train.

Run by that benchmark: ``python -m benchmarks.peers torch|accelerate|ray ...``. Each peer gets the model and
the tensors that fmdist builds, draws its batches from a shuffled order, and prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fmdist import stages
from fmdist.contracts import Draw

BATCH = 128
WARM = 10
"""Steps before the clock starts."""


def recipe(steps: int) -> dict[str, Any]:
    """Return what fmdist trains: as many epochs of ten steps as are needed."""
    return {
        "name": "bench",
        "seed": 0,
        "data": {"kind": "digits"},
        "model": {"kind": "cnn", "channels": [64, 128], "norm": "group"},
        "task": {"kind": "classification"},
        "train": {
            "epochs": -(-steps // 9),
            "batch_size": BATCH,
            "drop_last": True,
            "lr": 1e-3,
            "threads": 1,
            "log_every_steps": 10,
            "evaluate_every_epochs": 1000,
            "checkpoint": {"every_epochs": 1000},
        },
    }


class Case:
    """The model, the data of this process and a step on it."""

    def __init__(self, rank: int, size: int) -> None:
        torch.set_num_threads(1)
        loaded = stages.load_recipe(recipe(1))
        data = loaded.data.build(0)
        torch.manual_seed(0)
        self.model: nn.Module = loaded.model.build(data.spec, 10)
        batch = data.train.__getitems__(Draw(0, np.arange(len(data.train))))
        self._images, self._classes = batch["image"], batch["target"]
        self._rank, self._part = rank, BATCH // size
        self._order: list[Tensor] = []
        self._epoch = 0

    def step(self, model: nn.Module, optimizer: torch.optim.Optimizer, accelerator: Any = None) -> Tensor:
        """Make one step on this process's part of the next batch; return its loss."""
        if not self._order:
            generator = torch.Generator().manual_seed(self._epoch)
            self._epoch += 1
            shuffled = torch.randperm(len(self._classes), generator=generator)
            self._order = list(torch.split(shuffled, BATCH))[: len(self._classes) // BATCH]
        chosen = self._order.pop()[self._rank * self._part : (self._rank + 1) * self._part]
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(self._images[chosen]), self._classes[chosen])
        if accelerator is None:
            torch.autograd.backward(loss)
        else:
            accelerator.backward(loss)
        optimizer.step()
        return loss

    def timed(self, model: nn.Module, optimizer: Any, steps: int, accelerator: Any = None) -> float:
        """Return the seconds of ``steps`` steps, after some that aren't counted."""
        for _ in range(WARM):
            self.step(model, optimizer, accelerator).item()
        began = time.perf_counter()
        for number in range(steps):
            loss = self.step(model, optimizer, accelerator)
            if number % 10 == 0:
                loss.item()
        return time.perf_counter() - began


def with_torch(steps: int) -> None:
    """Train as one of torchrun's processes."""
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    case = Case(rank, size)
    model = case.model
    if size > 1:
        torch.distributed.init_process_group("gloo")
        model = nn.parallel.DistributedDataParallel(model)
    tell(rank, case.timed(model, torch.optim.AdamW(model.parameters(), lr=1e-3), steps))


def with_accelerate(steps: int) -> None:
    """Train as one of the processes of torchrun, prepared by Accelerate."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    case = Case(accelerator.process_index, accelerator.num_processes)
    optimizer = torch.optim.AdamW(case.model.parameters(), lr=1e-3)
    model, prepared = accelerator.prepare(case.model, optimizer)
    tell(accelerator.process_index, case.timed(model, prepared, steps, accelerator))


def with_ray(workers: int, steps: int, reports: int) -> None:
    """Train by Ray Train as it is out of the box; with ``reports``, that often with a checkpoint."""
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    ray.init(address="local", log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        trainer = TorchTrainer(
            _ray_worker,
            train_loop_config={"steps": steps, "reports": reports, "out": f"{folder}/seconds"},
            scaling_config=ScalingConfig(num_workers=workers),
            run_config=RunConfig(storage_path=folder, name="bench"),
        )
        trainer.fit()
        tell(0, float(Path(folder, "seconds").read_text()))
    ray.shutdown()


def _ray_worker(config: dict[str, Any]) -> None:
    import ray.train.torch

    place = ray.train.get_context()
    case = Case(place.get_world_rank(), place.get_world_size())
    model = ray.train.torch.prepare_model(case.model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    seconds = case.timed(model, optimizer, config["steps"])
    for _ in range(config["reports"]):
        losses = [case.step(model, optimizer).item() for _ in range(10)]
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = None
            if place.get_world_rank() == 0:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save(state, Path(folder, "state.pt"))
                checkpoint = ray.train.Checkpoint.from_directory(folder)
            ray.train.report({"loss": float(np.mean(losses))}, checkpoint=checkpoint)
    if place.get_world_rank() == 0:
        Path(config["out"]).write_text(str(seconds))


def tell(rank: int, seconds: float) -> None:
    """Print the seconds, once."""
    if rank == 0:
        sys.stdout.write(json.dumps({"seconds": seconds}) + "\n")


PEERS: dict[str, Callable[..., None]] = {"torch": with_torch, "accelerate": with_accelerate, "ray": with_ray}

if __name__ == "__main__":
    which, *numbers = sys.argv[1:]
    PEERS[which](*map(int, numbers))
