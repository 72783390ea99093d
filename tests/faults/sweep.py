"""Kill a training run again and again at random moments and let the same command finish it.

``python -m tests.faults.sweep`` kills 200 times (about 3 min) and writes benchmarks/results/kill_sweep.json.
A parent that has imported everything forks the runs, so that a start costs no seconds; they are real
processes and get a real SIGKILL. A run tells where it is through shared memory, so that a share of the kills
can be aimed at a save, an evaluation, the start-up or the end.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import signal
import statistics
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fmdist import console, stages, storage
from fmdist.training import loop, run, scoring
from fmdist.training.checkpoint import CheckpointStore
from fmdist.training.phase import PhaseTrainer
from tests.faults.rig import outcome, small_recipe, steps

PHASES = ("starting", "training", "saving", "evaluating", "finishing")
MOMENTS = ("anywhere", "starting", "training", "saving", "saving", "evaluating", "finishing")
"""What the next kill waits for; the phase that it hits is read afterwards."""
VARIANTS = (1, 2, 3)
"""`train.checkpoint.every_steps` of successive runs."""
_LAYOUT = struct.Struct("iii")


class Seen(NamedTuple):
    """Where a run is."""

    phase: int
    step: int
    """Optimizer steps made."""
    resumed: int
    """Step of the checkpoint that it started from; 0 without one."""


class Board:
    """Shared memory in which a run writes where it is."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _LAYOUT.size)

    def write(self, **changed: int) -> None:
        _LAYOUT.pack_into(self._memory, 0, *self.read()._replace(**changed))

    def read(self) -> Seen:
        return Seen(*_LAYOUT.unpack_from(self._memory, 0))


class Life(NamedTuple):
    """One process, from its start to its end or its kill."""

    killed: bool
    seen: Seen


def recipe(every_steps: int) -> dict[str, Any]:
    train = {
        "epochs": 3,
        "ema": {"decay": 0.9},
        "schedule": "cosine",
        "checkpoint": {"every_steps": every_steps},
    }
    return small_recipe(train)


def report_to(board: Board) -> None:
    """Make this process write where it is."""

    def during(phase: str, owner: Any, name: str) -> None:
        wrapped: Callable[..., Any] = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            before = board.read().phase
            board.write(phase=PHASES.index(phase))
            try:
                return wrapped(*arguments, **named)
            finally:
                board.write(phase=before)

        setattr(owner, name, call)

    def counting(trainer: PhaseTrainer, *arguments: Any) -> None:
        step(trainer, *arguments)
        seen = board.read()
        # A checkpoint may be written meanwhile.
        saving = seen.phase == PHASES.index("saving")
        board.write(phase=seen.phase if saving else PHASES.index("training"), step=seen.step + 1)

    def resuming(store: CheckpointStore, saved: Any, trainables: Any) -> None:
        load(store, saved, trainables)
        board.write(resumed=saved.step, step=saved.step)

    during("saving", CheckpointStore, "commit")
    during("evaluating", loop, "evaluate")
    during("finishing", scoring, "score_split")
    during("finishing", scoring, "write_scores")
    step, load = PhaseTrainer.step, CheckpointStore.load_progress
    patches: list[tuple[Any, str, Any]] = [
        (PhaseTrainer, "step", counting),
        (CheckpointStore, "load_progress", resuming),
    ]
    for owner, name, patched in patches:
        setattr(owner, name, patched)
    board.write(phase=0, step=0, resumed=0)


def live(folder: Path, every_steps: int, wait: Callable[[Board], bool] | None) -> Life:
    """Start the run's command in a process of its own; kill it if ``wait`` says so before its end.

    Raises:
        RuntimeError: if it ends with an error.
    """
    board = Board()
    complaint = folder.with_suffix(".error")
    pid = os.fork()
    if pid == 0:
        try:
            report_to(board)
            stages.train(recipe(every_steps), output=folder)
        except BaseException:
            complaint.write_text(traceback.format_exc(), encoding="utf-8")
            os._exit(1)
        os._exit(0)
    ended = False
    while not ended and (wait is None or not wait(board)):
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        time.sleep(0.0002)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code not in (0, -signal.SIGKILL):
        message = f"the run in {folder} ended with {code}:\n{complaint.read_text(encoding='utf-8')}"
        raise RuntimeError(message)
    return Life(code != 0, board.read())


def moment(draw: random.Random, duration: float) -> Callable[[Board], bool]:
    """Return what says, once asked again and again, that it is time to kill."""
    aim = draw.choice(MOMENTS)
    began = time.monotonic()
    if aim == "anywhere":
        end = began + draw.uniform(0, duration)
        return lambda board: time.monotonic() >= end
    # First somewhere into the run, then the next time that the phase is seen, then a little into it.
    not_before = began if aim in ("starting", "finishing") else began + draw.uniform(0, duration / 2)
    delay = draw.uniform(0, {"starting": 0.1, "evaluating": 0.01, "finishing": 0.2}.get(aim, 0.03))
    entered: list[float] = []

    def wait(board: Board) -> bool:
        now = time.monotonic()
        if not entered and now >= not_before and board.read().phase == PHASES.index(aim):
            entered.append(now)
        return bool(entered) and now >= entered[0] + delay

    return wait


def newest_step(folder: Path) -> int:
    found = steps(folder)
    return int(found[-1].name[5:15]) if found else 0


def check_resumed(folder: Path, life: Life, expected: int, fresh: bool) -> None:
    """Refuse a run that didn't go on from the newest checkpoint, or called one damaged."""
    if not fresh and life.seen.phase and life.seen.resumed != expected:
        message = f"{folder} resumed at step {life.seen.resumed}, its newest checkpoint was {expected}"
        raise RuntimeError(message)
    if damaged := sorted(folder.glob("checkpoints/*.corrupt")):
        message = f"a kill left damaged checkpoints: {damaged}"
        raise RuntimeError(message)


def sweep(kills: int, seed: int, folder: Path) -> dict[str, Any]:
    """Kill ``kills`` times, let every run finish, compare it, and return the record of it all.

    Raises:
        RuntimeError: if a run can't be resumed, or ends otherwise than the undisturbed one.
    """
    draw = random.Random(seed)
    # In this process, so that what is imported and cached at first use is there in every fork.
    stages.train(recipe(VARIANTS[-1]), output=folder / "warm-up")
    undisturbed, durations = {}, {}
    for every_steps in VARIANTS:
        began = time.monotonic()
        live(folder / f"undisturbed-{every_steps}", every_steps, None)
        durations[every_steps] = time.monotonic() - began
        undisturbed[every_steps] = outcome(folder / f"undisturbed-{every_steps}")
    lost: list[int] = []
    where: Counter[str] = Counter()
    resumes = rounds = leftovers = 0
    began = time.monotonic()
    while len(lost) < kills:
        every_steps = VARIANTS[rounds % len(VARIANTS)]
        target = folder / f"run-{rounds}"
        finished, starts = False, 0
        while not finished:
            before = newest_step(target)
            wait = moment(draw, durations[every_steps]) if len(lost) < kills else None
            life = live(target, every_steps, wait)
            check_resumed(target, life, before, fresh=before == 0)
            resumes += life.seen.resumed > 0
            starts += 1
            finished = not life.killed
            if life.killed:
                where[PHASES[life.seen.phase]] += 1
                lost.append(max(0, life.seen.step - newest_step(target)))
                leftovers += any(target.glob("checkpoints/.step-*.tmp"))
                # A kill after the last write leaves nothing to resume.
                finished = (target / run.RECORD).exists() and run.read_run(target)["status"] == "finished"
        got, expected = outcome(target), undisturbed[every_steps]
        if got != expected:
            different = [key for key in got if got[key] != expected[key]]
            message = f"{target} differs from the undisturbed run in {different} after {starts} starts"
            raise RuntimeError(message)
        rounds += 1
    return {
        "kills": len(lost),
        "runs": rounds,
        "resumes_from_a_checkpoint": resumes,
        "bit_identical_runs": rounds,
        "kills_by_phase": {phase: where[phase] for phase in PHASES},
        "kills_that_left_a_partial_folder": leftovers,
        "steps_lost_per_kill": {"median": statistics.median(lost), "max": max(lost)},
        "steps_per_run": undisturbed[VARIANTS[0]]["run"]["step"],
        "checkpoint_every_steps": list(VARIANTS),
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
    }


def main(words: Sequence[str] | None = None) -> int:
    """Sweep, write the record, and say so."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/kill_sweep.json")
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    console.set_quiet(True)
    with tempfile.TemporaryDirectory() as folder:
        results = sweep(options.kills, options.seed, Path(folder))
    if options.output is None:
        from benchmarks.harness import write_results

        write_results("kill_sweep", results)
    else:
        storage.write_json(options.output, results)
    sys.stdout.write(json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
