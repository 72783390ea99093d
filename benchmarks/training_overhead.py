"""Steady-state cost of a training step in fmdist over a plain torch loop, with equal weights at the end.

Run with ``make bench`` or ``python -m benchmarks.training_overhead``; takes about 2 minutes. Both sides
read the same DataLoader over the same batches, start from the same weights, and use AdamW at one thread.
fmdist runs as it does for a user: metrics.jsonl and TensorBoard every 50 steps, the progress line, signal
handling and the non-finite guard. Timed is from the end of the first step to the end of the last, which
leaves out start-up, the final evaluation and the final checkpoint on our side, and nothing on the other.
Ten interleaved pairs; reported are the median ratio and its 95% bootstrap interval.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from benchmarks.harness import spread, write_results
from fmdist import console, stages
from fmdist.contracts import Context, DataSpec, Draw, InputSpec, TargetSpec, Task
from fmdist.data.loader import training_loader
from fmdist.data.plan import BatchPlan
from fmdist.training.checkpoint import CheckpointStore, weights_digest
from fmdist.training.engine import engine
from fmdist.training.listeners import Listener, ProgressLine, Trackers, metrics_file
from fmdist.training.loop import Equipment, fit

PAIRS = 10
LEARNING_RATE = 1e-3


@dataclass
class Case:
    """A model on data, and how much slower a step may be."""

    name: str
    recipe: stages.Recipe
    data: Any
    """Has ``spec``, ``train`` and ``validation``."""
    limit: float


class Clock:
    """A listener that notes when the first and the last step ended."""

    def __init__(self) -> None:
        self.first = self.last = 0.0

    def step(self, done: int, loss: Callable[[], float]) -> None:
        """Note the time."""
        self.last = time.perf_counter()
        self.first = self.first or self.last

    def record(self, values: Mapping[str, Any]) -> None:
        """Records are not timed."""


def ours(case: Case) -> tuple[float, str]:
    """Train with fmdist; return seconds per run and the digest of the weights."""
    task = build(case)
    config = case.recipe.train
    clock = Clock()
    with (
        tempfile.TemporaryDirectory() as name,
        metrics_file(Path(name) / "metrics.jsonl") as metrics,
        engine(config, Context(), Path(name)) as working,
        ProgressLine(config.epochs, "accuracy") as line,
    ):
        store = CheckpointStore(Path(name) / "checkpoints", "max", config.checkpoint)
        listeners: list[Listener] = [metrics, Trackers(working), line, clock]
        fit(task, case.data, config, Equipment(working, store, metrics, listeners), seed=0)
    return clock.last - clock.first, weights_digest(task.roles()["model"])


def plain(case: Case) -> tuple[float, str]:
    """Train with a plain loop; return the same."""
    config = case.recipe.train
    model: nn.Module = build(case).roles()["model"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    plan = BatchPlan(len(case.data.train), config.batch_size, seed=0)
    name = case.data.spec.inputs[0].name
    model.train()
    first = total = 0.0
    for batch in training_loader(case.data.train, plan, (0, 0), config.epochs):
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(batch[name]), batch["target"])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += loss.item()
        first = first or time.perf_counter()
    return time.perf_counter() - first, weights_digest(model)


def build(case: Case) -> Task:
    """Return the task with the same initial weights every time."""
    torch.manual_seed(0)
    return case.recipe.task.build(case.data.spec, case.recipe.model)


def compare(case: Case) -> dict[str, Any]:
    """Return both sides' step times and the ratio of ten interleaved pairs."""
    steps = BatchPlan(len(case.data.train), case.recipe.train.batch_size, 0).steps_per_epoch
    steps = steps * case.recipe.train.epochs - 1
    equal = ours(case)[1] == plain(case)[1]
    pairs = []
    for pair in range(PAIRS):
        sides = (ours, plain) if pair % 2 == 0 else (plain, ours)
        seconds = {side.__name__: side(case)[0] for side in sides}
        pairs.append((seconds["ours"], seconds["plain"]))
    ratios = [one / other for one, other in pairs]
    random = np.random.default_rng(0)
    medians = [statistics.median(random.choice(ratios, PAIRS)) for _ in range(2000)]
    low, high = np.percentile(medians, [2.5, 97.5])
    result: dict[str, Any] = {
        "fmdist_ms_per_step": spread([1000 * one / steps for one, _ in pairs]),
        "plain_ms_per_step": spread([1000 * other / steps for _, other in pairs]),
        "ratio": spread(ratios) | {"interval": [float(low), float(high)]},
        "limit": case.limit,
        "equal_weights": equal,
    }
    sys.stdout.write(
        f"{case.name:<12} fmdist {result['fmdist_ms_per_step']['median']:.3f} ms, "
        f"plain {result['plain_ms_per_step']['median']:.3f} ms, "
        f"ratio {result['ratio']['median']:.3f} ({low:.3f} to {high:.3f}), "
        f"limit {case.limit}, equal weights: {equal}\n"
    )
    return result


def recipe(data: str, model: Mapping[str, Any], epochs: int) -> stages.Recipe:
    """Return a recipe that evaluates and saves at the end only."""
    train = {
        "epochs": epochs,
        "lr": LEARNING_RATE,
        "threads": 1,
        "evaluate_every_epochs": epochs,
        "checkpoint": {"every_epochs": epochs},
    }
    return stages.load_recipe(
        {
            "name": "bench",
            "data": {"kind": data},
            "model": model,
            "task": {"kind": "classification"},
            "train": train,
        }
    )


class RandomImages:
    """Images of 32 x 32 in memory, in the place of CIFAR-10, which is not on this machine."""

    def __init__(self, size: int) -> None:
        generator = torch.Generator().manual_seed(size)
        self._images = torch.randn(size, 3, 32, 32, generator=generator)
        self._targets = torch.randint(10, (size,), generator=generator)
        self.targets = self._targets.numpy()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitems__(self, draw: Draw) -> dict[str, torch.Tensor]:
        index = torch.from_numpy(draw.indices)
        return {"image": self._images[index], "target": self._targets[index], "index": index}


@dataclass
class RandomSplits:
    """What the loop needs of `DataSplits`."""

    train: RandomImages
    validation: RandomImages
    spec: DataSpec


def main() -> int:
    """Measure both cases, write results/training_overhead.json, return 1 if a limit is missed."""
    console.set_quiet(True)
    torch.set_num_threads(1)
    digits = recipe("digits", {"kind": "mlp"}, epochs=100)
    resnet = recipe("cifar10", {"kind": "resnet", "depth": 20}, epochs=1)
    names = tuple(str(label) for label in range(10))
    spec = DataSpec((InputSpec("image", (3, 32, 32)),), TargetSpec("class", names), 64 * 16, (100,) * 10)
    images = RandomSplits(RandomImages(64 * 16), RandomImages(64), spec)
    cases = [
        Case("digits MLP", digits, digits.data.build(0), limit=1.15),
        Case("ResNet-20", resnet, images, limit=1.03),
    ]
    results = {case.name: compare(case) for case in cases}
    path = write_results("training_overhead", {"pairs": PAIRS, "torch": torch.__version__, "cases": results})
    sys.stdout.write(f"wrote {path}\n")
    return int(
        any(one["ratio"]["median"] > one["limit"] or not one["equal_weights"] for one in results.values())
    )


if __name__ == "__main__":
    sys.exit(main())
