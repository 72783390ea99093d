"""Distributed training against bare torch DDP, Accelerate and Ray Train: speed, start-up, checkpoints.

Run with ``python -m benchmarks.distributed [steady|whole|checkpoints|startup]...``; all of it takes about 30
minutes on 2 cores. Every figure is a ratio of runs of the same round, since a shared machine's speed drifts:

- steady: samples per second with one and two workers over the best of the three others, same model, same
  data, same batch, one thread a process; after ten steps that aren't counted.
- whole: seconds from the command to its end of a two-worker job with five evaluations and checkpoints, over
  those of the same loop written for Ray Train with its defaults, which reports five times with a checkpoint
  (and doesn't score the test split at the end, as fmdist does).
- checkpoints: what a checkpoint every 50 steps costs. In one run every second stretch of 50 steps begins
  with a checkpoint, so that both sorts meet the same drift.
- startup: where the seconds of a two-worker job go.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.harness import RESULTS, origin, spread, write_parts
from benchmarks.peers import BATCH, WARM, recipe

ROUNDS = 5
STEPS = 200
FMDIST = str(Path(sys.executable).with_name("fmdist"))


def said(*words: str) -> float:
    """Run a peer and return the seconds that it says."""
    # A folder of Ray's own, so that clusters which ended badly here don't slow the peer down.
    with tempfile.TemporaryDirectory(prefix="ray-") as name:
        own = {**os.environ, "RAY_TMPDIR": name}
        done = subprocess.run([sys.executable, *words], capture_output=True, text=True, check=False, env=own)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stderr}")
    return float(json.loads(done.stdout.strip().splitlines()[-1])["seconds"])


def torchrun(peer: str, workers: int, steps: int) -> float:
    """Run a peer on torchrun, or on its own with one worker."""
    launcher = ["-m", "torch.distributed.run", f"--nproc-per-node={workers}"] if workers > 1 else []
    return said(*launcher, "-m", "benchmarks.peers", peer, str(steps))


PEERS: dict[str, Callable[[int, int], float]] = {
    "torch": lambda workers, steps: torchrun("torch", workers, steps),
    "accelerate": lambda workers, steps: torchrun("accelerate", workers, steps),
    "ray train": lambda workers, steps: said("-m", "benchmarks.peers", "ray", str(workers), str(steps), "0"),
}


def fmdist(folder: Path, values: dict[str, Any]) -> list[dict[str, Any]]:
    """Train with fmdist as a user does and return the records of metrics.jsonl."""
    (folder / "recipe.yaml").write_text(yaml.safe_dump(values))
    words = [FMDIST, "train", "recipe.yaml", "-o", "run", "--quiet"]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"fmdist failed:\n{done.stderr}")
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [record for line in lines if (record := json.loads(line))["split"] == "train"]


def ours(workers: int, steps: int) -> float:
    """Return the seconds of ``steps`` steps after the first ten."""
    values = recipe(WARM + steps)
    if workers > 1:
        values["scaling"] = {"workers": workers}
    with tempfile.TemporaryDirectory() as name:
        at = {record["step"]: record["seconds"] for record in fmdist(Path(name), values)}
    return float(at[WARM + steps] - at[WARM])


def steady() -> dict[str, Any]:
    """Measure the steps' speed."""
    results = {}
    for workers in (1, 2):
        sides: dict[str, Callable[[int, int], float]] = {"fmdist": ours, **PEERS}
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for number in range(ROUNDS):
            names = list(sides)
            for side in names[number % 4 :] + names[: number % 4]:
                seconds[side].append(sides[side](workers, STEPS))
        speeds = {side: [BATCH * STEPS / one for one in values] for side, values in seconds.items()}
        best = max(PEERS, key=lambda side: statistics.median(speeds[side]))
        ratios = [own / other for own, other in zip(speeds["fmdist"], speeds[best], strict=True)]
        results[f"{workers} worker(s)"] = {
            "samples_per_s": {side: spread(values) for side, values in speeds.items()},
            "best_peer": best,
            "ratio": spread(ratios),
            "limit": 0.95,
        }
    return results


def whole() -> dict[str, Any]:
    """Measure a job from the command to its end."""
    seconds: dict[str, list[float]] = {"fmdist": [], "ray train": []}
    values = recipe(0)
    values["train"] |= {"epochs": 5, "evaluate_every_epochs": 1, "checkpoint": {"every_epochs": 1}}
    values["scaling"] = {"workers": 2}
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as name:
            began = time.perf_counter()
            fmdist(Path(name), values)
            seconds["fmdist"].append(time.perf_counter() - began)
        began = time.perf_counter()
        said("-m", "benchmarks.peers", "ray", "2", "0", "5")
        seconds["ray train"].append(time.perf_counter() - began)
    ratios = [own / other for own, other in zip(seconds["fmdist"], seconds["ray train"], strict=True)]
    return {
        "seconds": {side: spread(times) for side, times in seconds.items()},
        "ratio": spread(ratios),
        "limit": 0.7,
    }


def checkpoints() -> dict[str, Any]:
    """Measure what a checkpoint every 50 steps costs."""
    results = {}
    for workers in (1, 2):
        values = recipe(1250)
        values["train"] |= {"log_every_steps": 50, "checkpoint": {"every_steps": 100, "every_epochs": 1000}}
        if workers > 1:
            values["scaling"] = {"workers": workers}
        with tempfile.TemporaryDirectory() as name:
            at = {record["step"]: record["seconds"] for record in fmdist(Path(name), values)}
        # The checkpoint of step 100 is written in the steps after it.
        pairs = [(at[step + 50] - at[step], at[step + 100] - at[step + 50]) for step in range(100, 1101, 100)]
        costs = [with_one / without - 1 for with_one, without in pairs]
        random = np.random.default_rng(0)
        medians = [statistics.median(random.choice(costs, len(costs))) for _ in range(2000)]
        results[f"{workers} worker(s)"] = {
            "cost": {**spread(costs), "interval": [float(x) for x in np.percentile(medians, [2.5, 97.5])]},
            "ms_per_50_steps": statistics.median(1000 * without for _, without in pairs),
            "pairs": len(pairs),
            "limit": 0.02,
        }
    return results


def startup() -> dict[str, Any]:
    """Measure the parts of a job's time by the files that it leaves."""
    parts: dict[str, list[float]] = {}
    values = recipe(0)
    values["train"] |= {"epochs": 5, "evaluate_every_epochs": 1, "checkpoint": {"every_epochs": 1}}
    values["scaling"] = {"workers": 2}
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory() as name:
            marks = [("", time.time())]
            records = fmdist(Path(name), values)
            ended = time.time()
            run = Path(name) / "run"
            first = [path for path in sorted((run / "checkpoints").iterdir())]
            marks += [
                ("imports, the recipe, Ray's start", (run / ".lock").stat().st_mtime),
                ("reading the data, building the task", (run / "recipe.yaml").stat().st_mtime),
                ("starting the workers, their imports and data", (run / ".training.lock").stat().st_mtime),
                ("training", (first[-1] / "manifest.json").stat().st_mtime),
                ("ending the workers, scoring the test split", (run / "run.json").stat().st_mtime),
                ("ending Ray", ended),
            ]
            for (_, begin), (part, end) in pairwise(marks):
                parts.setdefault(part, []).append(end - begin)
            parts.setdefault("(training, by its own clock)", []).append(records[-1]["seconds"])
    return {part: spread(times) for part, times in parts.items()}


MEASURES = {"steady": steady, "whole": whole, "checkpoints": checkpoints, "startup": startup}


def main(chosen: Sequence[str]) -> None:
    """Measure what is chosen, all by default; the results of the rest stay as they are."""
    path = RESULTS / "distributed.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    results = {name: results[name] for name in MEASURES if name in results}
    for name in chosen or MEASURES:
        results[name] = {**origin(), **MEASURES[name]()}
        sys.stdout.write(f"{name}: {json.dumps(results[name], indent=1)}\n")
        write_parts("distributed", results)


if __name__ == "__main__":
    main(sys.argv[1:])
