"""Kill workers, drivers and Ray Train's controllers at random moments and let every run finish.

``python -m tests.distributed.sweep`` kills 40 times (about 8 min) and writes
benchmarks/results/kill_sweep_workers.json. All runs are on one Ray cluster that stays. A worker's and a
controller's loss is mended by the run itself; after a driver's the same command is started again, while the
workers that the killed one left may still be at work.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fmdist import storage
from tests.distributed.head import Head, head
from tests.distributed.life import Command
from tests.distributed.rig import records

EVERY_STEPS, STEPS = 5, 120
KINDS = ("worker", "worker", "worker", "driver", "driver", "controller")
"""A deck: every kill draws one of those that are left, until none is."""
MOMENTS = ("training", "training", "saving", "saving", "starting")

MOST_KILLS = 5
"""Of one run."""

RECIPE = f"""\
name: killed
seed: 1
data: {{kind: digits}}
model: {{kind: cnn, channels: [8, 16], blocks: 1, norm: group, dropout: 0.2}}
task: {{kind: classification}}
train:
  epochs: 6
  lr: 2e-3
  threads: 1
  trackers: []
  log_every_steps: 1
  checkpoint: {{every_steps: {EVERY_STEPS}}}
scaling: {{workers: 2, cpus_per_worker: 0.5, max_failures: {MOST_KILLS}, backoff_seconds: 0.05}}
"""
"""The cluster has room for two such runs: one doesn't wait until Ray has ended a killed one's workers."""


class Kill(NamedTuple):
    """A kill and what it cost."""

    kind: str
    moment: str
    saving: bool
    """Whether a checkpoint was being written, or an old one removed."""
    made: int
    """The last step that was made, also by workers that outlived their driver."""
    kept: int
    """The step of the newest checkpoint."""
    partial: bool
    """Whether a checkpoint's temporary folder was left."""


class Plan:
    """What is drawn: kinds apart from moments, of which there are as many as the machine is slow."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self._kinds = random.Random(seed)
        self._deck: list[str] = []

    def kind(self) -> str:
        if not self._deck:
            self._deck = self._kinds.sample(KINDS, len(KINDS))
        return self._deck.pop()


def wait_for_moment(command: Command, draw: random.Random) -> str | None:
    """Return, once it is time to kill, what it waited for; None if the run ended before."""
    moment = draw.choice(MOMENTS)
    if not command.wait(command.has_workers):
        return None
    if moment == "starting" or command.last_step() >= STEPS:
        end = time.monotonic() + draw.uniform(0, 4)
        return "starting" if command.wait(lambda: time.monotonic() >= end) else None
    step = draw.randint(command.last_step() + 1, STEPS)
    if not command.wait(lambda: command.last_step() >= step):
        return None
    if moment == "saving":
        if not command.wait(command.saves):
            return None
        time.sleep(draw.uniform(0, 0.01))
    return moment


def killed(command: Command, plan: Plan) -> Kill | None:
    """Kill something, and start the command again if it is the driver; None if the run ended before."""
    moment = wait_for_moment(command, plan.draw)
    if moment is None:
        return None
    kind = plan.kind()
    # At the start there may still be what the kill before has left.
    known = moment != "starting"
    saving = known and command.saves()
    if not command.kill(kind, plan.draw):
        return None
    made = command.wait_for_the_killed()
    kill = Kill(kind, moment, saving, made, command.newest(), known and command.saves())
    sys.stderr.write(f"{command.folder.name}: {kill}\n")
    return kill


def one_run(command: Command, plan: Plan, kills: int) -> list[Kill]:
    """Kill up to so many times in one run, wait for its end, and return the kills."""
    found: list[Kill] = []
    command.start()
    while len(found) < kills:
        kill = killed(command, plan)
        if kill is None:
            break
        found.append(kill)
    command.finish()
    # Where a run said that it went on, it must have been the newest checkpoint.
    said = {int(step) for step in re.findall(r"resuming at epoch \d+, step (\d+)", command.said())}
    if not said <= {kill.kept for kill in found}:
        message = f"{command.folder} went on at {sorted(said)}, after {found}"
        raise RuntimeError(message)
    if damaged := sorted(command.folder.glob("checkpoints/*.corrupt")):
        message = f"a kill left damaged checkpoints: {damaged}"
        raise RuntimeError(message)
    return found


def outcome(run: Path) -> dict[str, Any]:
    """Return all of a finished run that a kill must not change."""
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    files = storage.verify(newest)["files"]
    return {
        "tensors": {name: entry["sha256"] for name, entry in files.items() if name.endswith(".safetensors")},
        "metrics": records(run),
        "test": storage.read_json(run / "evaluation/test.json"),
    }


def commands(cluster: Head, folder: Path) -> Iterator[Command]:
    """Yield the command of one run after the other."""
    recipe = folder / "killed.yaml"
    recipe.write_text(RECIPE)
    number = 0
    while True:
        yield Command(cluster, recipe, folder / f"run-{number}")
        number += 1


def sweep(kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """Kill so many times, let every run finish, compare it, and return the record of it all.

    Raises:
        RuntimeError: if a run doesn't finish, or ends otherwise than the undisturbed one.
    """
    plan = Plan(seed)
    found: list[Kill] = []
    rounds = 0
    with head() as cluster:
        each = commands(cluster, folder)
        undisturbed = next(each)
        one_run(undisturbed, plan, 0)
        expected = outcome(undisturbed.folder)
        began = time.monotonic()
        while len(found) < kills:
            command = next(each)
            found += one_run(command, plan, min(MOST_KILLS, kills - len(found)))
            got = outcome(command.folder)
            if got != expected:
                different = [key for key in got if got[key] != expected[key]]
                message = f"{command.folder} differs from the undisturbed run in {different}: {found}"
                raise RuntimeError(message)
            rounds += 1
        seconds = time.monotonic() - began
    return summary(found, rounds, seconds) | {"seed": seed}


def summary(kills: Sequence[Kill], rounds: int, seconds: float) -> dict[str, Any]:
    # Whole ones: that of a checkpoint which was still being written counts, the steps made meanwhile don't.
    lost = [max(0, kill.made - kill.kept) // EVERY_STEPS for kill in kills]
    kinds, moments = Counter(kill.kind for kill in kills), Counter(kill.moment for kill in kills)
    return {
        "kills": len(kills),
        "runs": rounds,
        "bit_identical_runs": rounds,
        "kills_by_kind": {kind: kinds[kind] for kind in dict.fromkeys(KINDS)},
        "kills_by_moment": {moment: moments[moment] for moment in dict.fromkeys(MOMENTS)},
        "kills_during_a_save": sum(kill.saving for kill in kills),
        "kills_that_left_a_partial_folder": sum(kill.partial for kill in kills),
        "intervals_lost_per_kill": {"median": statistics.median(lost), "max": max(lost)},
        "steps_per_run": STEPS,
        "checkpoint_every_steps": EVERY_STEPS,
        "workers": 2,
        "seconds": round(seconds, 1),
        "seconds_per_kill": round(seconds / len(kills), 1),
    }


def main(words: Sequence[str] | None = None) -> int:
    """Sweep, write the record, and say so."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/kill_sweep_workers.json")
    options = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as folder:
        results = sweep(options.kills, options.seed, Path(folder))
    if options.output is None:
        from benchmarks.harness import write_results

        write_results("kill_sweep_workers", results)
    else:
        storage.write_json(options.output, results)
    sys.stdout.write(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
