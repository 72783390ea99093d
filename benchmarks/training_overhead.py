"""Steady-state cost of a training step in fmdist over a plain torch loop, with equal weights at the end.

Run with ``make bench`` or ``python -m benchmarks.training_overhead [CASE...]``; takes about 8 minutes. Both
sides read the same DataLoader over the same batches, start from the same weights, and use AdamW at one
thread. fmdist runs as it does for a user: metrics.jsonl and TensorBoard every 100 steps, the progress line
and the non-finite guard. The two take turns of a few steps in one process, since a shared machine's speed
changes by more than what is measured within seconds. Left out are start-up and the first turn on both
sides, and on ours the final evaluation and checkpoint. Ten such pairs of runs; reported are the median
ratio and its 95% bootstrap interval.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import plain_steps
from benchmarks.harness import RESULTS, spread, write_results
from benchmarks.plain_steps import Step, weights
from fmdist import console, stages
from fmdist.contracts import Context, DataSpec, Draw, InputSpec, TargetSpec, Task
from fmdist.data.loader import training_loader
from fmdist.data.plan import BatchPlan
from fmdist.stages.modules import Modules
from fmdist.training.checkpoint import CheckpointStore
from fmdist.training.engine import engine
from fmdist.training.listeners import ProgressLine, RecordListener, Trackers, metrics_file
from fmdist.training.loop import Equipment, fit, step_seed
from fmdist.training.writer import Writer

PAIRS = 10
LEARNING_RATE = 1e-3
EQUAL = 1e-4
"""Allowed difference of the weights at the end, over the largest: sums may come in another order."""


@dataclass
class Case:
    """A model on data, and how much slower a step may be."""

    name: str
    recipe: stages.Recipe
    data: Any
    """Has ``spec``, ``train`` and ``validation``."""
    plain: Callable[[Task, float], Step]
    """Makes the other side's step; see `benchmarks.plain_steps`."""
    limit: float
    turn: int
    """Steps after which the other side goes on."""


class Turns:
    """Lets two threads train in turns of some steps, and adds up each one's seconds.

    What disturbs the machine for longer than a turn meets both sides. Each side's first turn is not counted.
    """

    def __init__(self, steps: int) -> None:
        self.seconds = {"ours": 0.0, "plain": 0.0}
        self._steps = steps
        self._free = {"ours": threading.Semaphore(1), "plain": threading.Semaphore(0)}
        self._began = 0.0
        self._left = False

    def begin(self, side: str) -> None:
        """Wait for the side's turn."""
        if not self._left:
            self._free[side].acquire()
        self._began = time.perf_counter()

    def step(self, side: str, done: int) -> None:
        """Count the side's step ``done``, from 1; at the end of a turn let the other side go on."""
        if done % self._steps == 0:
            seconds = time.perf_counter() - self._began
            if done > self._steps:
                self.seconds[side] += seconds
            self._free["plain" if side == "ours" else "ours"].release()
            self.begin(side)

    def leave(self, side: str) -> None:
        """Let the other side end without waiting for this one."""
        self._left = True
        self._free["plain" if side == "ours" else "ours"].release()


class Turn:
    """The listener through which fmdist's loop takes turns."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def step(self, done: int, loss: Callable[[], float]) -> None:
        """Count a step."""
        self._turns.step("ours", done)


def ours(case: Case, task: Task, turns: Turns) -> Tensor:
    """Train with fmdist; return the weights."""
    config = case.recipe.train
    with (
        tempfile.TemporaryDirectory() as name,
        metrics_file(Path(name) / "metrics.jsonl") as metrics,
        engine(config, Context(), Path(name)) as working,
        ProgressLine(config.epochs, task.primary[0]) as line,
    ):
        store = CheckpointStore(Path(name) / "checkpoints", task.primary[1], config.checkpoint)
        records: list[RecordListener] = [metrics, Trackers(working), line]
        tools = Equipment(working, Writer(store, beside=True), metrics, records, [line, Turn(turns)])
        turns.begin("ours")
        try:
            fit(task, case.data, config, tools, seed=0)
        finally:
            turns.leave("ours")
    return weights(task.roles())


def plain(case: Case, task: Task, turns: Turns) -> Tensor:
    """Train with a plain loop; return the same."""
    torch.set_num_threads(1)
    config = case.recipe.train
    plan = BatchPlan(len(case.data.train), config.batch_size, 0, drop_last=config.drop_last)
    step = case.plain(task, LEARNING_RATE)
    generator = torch.Generator()
    for module in task.roles().values():
        module.train()
    total = 0.0
    turns.begin("plain")
    for done, batch in enumerate(training_loader(case.data.train, plan, (0, 0), config.epochs), start=1):
        generator.manual_seed(step_seed(0, *divmod(done - 1, plan.steps_per_epoch)))
        total += step(batch, generator)
        turns.step("plain", done)
    turns.leave("plain")
    return weights(task.roles())


def build(case: Case) -> Task:
    """Return the task with the same initial weights every time."""
    torch.manual_seed(0)
    return case.recipe.task.build(case.data.spec, Modules(case.recipe.model))


def compare(case: Case) -> dict[str, Any]:
    """Return both sides' step times and the ratio of ten runs side by side."""
    settings = case.recipe.train
    plan = BatchPlan(len(case.data.train), settings.batch_size, 0, drop_last=settings.drop_last)
    counted = (plan.steps_per_epoch * settings.epochs // case.turn - 1) * case.turn
    pairs, furthest = [], 0.0
    for pair in range(PAIRS):
        turns = Turns(case.turn)
        # Built before either begins: both draw their weights from torch's global generator.
        sides = [(ours, build(case)), (plain, build(case))]
        if pair % 2:  # each thread has a memory arena of its own, and they are not alike
            sides.reverse()
        with ThreadPoolExecutor(2) as threads:
            ended = [threads.submit(side, case, task, turns) for side, task in sides]
            one, other = (end.result() for end in ended)
            furthest = max(furthest, float((one - other).abs().max() / other.abs().max()))
        pairs.append((turns.seconds["ours"] / counted, turns.seconds["plain"] / counted))
    ratios = [one / other for one, other in pairs]
    random = np.random.default_rng(0)
    medians = [statistics.median(random.choice(ratios, PAIRS)) for _ in range(2000)]
    low, high = np.percentile(medians, [2.5, 97.5])
    result: dict[str, Any] = {
        "fmdist_ms_per_step": spread([1000 * one for one, _ in pairs]),
        "plain_ms_per_step": spread([1000 * other for _, other in pairs]),
        "ratio": spread(ratios) | {"interval": [float(low), float(high)]},
        "steps_per_run": counted,
        "limit": case.limit,
        "largest_difference_of_weights": furthest,
    }
    sys.stdout.write(
        f"{case.name:<12} fmdist {result['fmdist_ms_per_step']['median']:.3f} ms, "
        f"plain {result['plain_ms_per_step']['median']:.3f} ms, "
        f"ratio {result['ratio']['median']:.3f} ({low:.3f} to {high:.3f}), "
        f"limit {case.limit}, weights differ by {furthest:.1e} of the largest\n"
    )
    return result


def recipe(
    data: Mapping[str, Any],
    model: Mapping[str, Any],
    task: Mapping[str, Any],
    epochs: int,
    batch_size: int = 64,
) -> stages.Recipe:
    """Return a recipe that evaluates and saves at the end only."""
    train = {
        "epochs": epochs,
        "batch_size": batch_size,
        "drop_last": True,
        "lr": LEARNING_RATE,
        "threads": 1,
        "evaluate_every_epochs": epochs,
        "checkpoint": {"every_epochs": epochs},
    }
    return stages.load_recipe(
        {
            "name": "bench",
            "data": data,
            "model": model,
            "task": task,
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


def cases(folder: Path) -> list[Case]:
    """Return what is measured: 15% for a step below a millisecond, 3% for ResNet-20, 5% for the others."""
    digits = {"kind": "digits"}
    supervised = {"kind": "classification"}
    mlp = recipe(digits, {"kind": "mlp"}, supervised, epochs=100)
    resnet = recipe({"kind": "cifar10"}, {"kind": "resnet", "depth": 20}, supervised, epochs=1)
    names = tuple(str(label) for label in range(10))
    spec = DataSpec((InputSpec("image", (3, 32, 32)),), TargetSpec("class", names), 64 * 32, (100,) * 10)
    images = RandomSplits(RandomImages(64 * 32), RandomImages(64), spec)
    text = folder / "topics.txt"
    text.write_text("\n".join(topics[name] for name in sorted(topics))[:150_000], encoding="utf-8")
    lm = recipe(
        {"kind": "text_file", "path": str(text), "length": 128},
        {"kind": "lstm_lm", "dropout": 0.0},
        {"kind": "language_modeling"},
        epochs=1,
        batch_size=32,
    )
    pixels = {"kind": "digits", "normalize": False}
    vae = recipe(
        pixels,
        {"kind": "conv_vae"},
        {"kind": "variational", "likelihood": "bernoulli"},
        epochs=8,
        batch_size=256,
    )
    gan = recipe(pixels, {"kind": "gan"}, {"kind": "adversarial"}, epochs=8, batch_size=256)
    return [
        Case("digits MLP", mlp, mlp.data.build(0), plain_steps.classifier, limit=1.15, turn=50),
        Case("ResNet-20", resnet, images, plain_steps.classifier, limit=1.03, turn=2),
        Case("LSTM", lm, lm.data.build(0), plain_steps.language_model, limit=1.05, turn=2),
        Case("VAE", vae, vae.data.build(0), plain_steps.variational_autoencoder, limit=1.05, turn=4),
        Case("GAN", gan, gan.data.build(0), plain_steps.adversaries, limit=1.05, turn=4),
    ]


def main() -> int:
    """Measure, write results/training_overhead.json, return 1 if a limit is missed."""
    console.set_quiet(True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        chosen = [case for case in cases(Path(name)) if case.name in sys.argv[1:] or len(sys.argv) == 1]
    results = {case.name: compare(case) for case in chosen}
    path = RESULTS / "training_overhead.json"
    known = json.loads(path.read_text())["cases"] if path.exists() and len(sys.argv) > 1 else {}
    facts = {"pairs": PAIRS, "torch": torch.__version__, "cases": {**known, **results}}
    sys.stdout.write(f"wrote {write_results('training_overhead', facts)}\n")
    return int(
        any(
            one["ratio"]["median"] > one["limit"] or one["largest_difference_of_weights"] > EQUAL
            for one in results.values()
        )
    )


if __name__ == "__main__":
    sys.exit(main())
