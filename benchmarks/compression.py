"""fmdist's artifacts against what a user would pick instead, on one checkpoint and the same data.

Run with ``python -m benchmarks.compression [resnet18|bert]... [--quick] [--peers NAME...]``. Every side
calibrates on the same 300 training samples, runs at one thread in the runtime that it is made for, and is
scored on the test split there. Sides: NNCF and ONNX Runtime's static quantization called directly, torchao,
Intel Neural Compressor and Olive (each with its defaults, the last three in environments of their own under
``build/peers``); one that can't be installed or fails has the reason in its row. Latencies are of one sample,
in blocks that take turns in a random order, in three fresh processes; ResNet-18's at 224 x 224, by the same
weights.

- quantized: the pass `quantize` alone, against each peer and the best of them. Accuracies are means over five
  calibration sets, the same for every side; the models of the first are also timed and weighed.
- whole: `prune_channels` and `quantize` as the recipe has them, against the original in eager torch.
- wall: making the INT8 model for OpenVINO, with verification and benchmark left out, against the bare calls
  of NNCF with the same settings. Seconds after the imports, at one thread.

Models and runs stay in ``build/compression``; a finished run isn't trained again.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.compression_peers import comparison, environments
from benchmarks.compression_peers.job import SAID, Job
from benchmarks.compression_peers.subjects import (
    CASES,
    DRAWS,
    QUICK,
    Case,
    Files,
    calibration,
    prepare,
    train,
)
from benchmarks.harness import RESULTS, ROOT, origin, write_parts
from fmdist import storage
from fmdist.compression.manifest import describe

FOLDER = ROOT / "build" / "compression"
ROUNDS, SAMPLES = 3, 200
FAITHFUL = 0.1
"""Largest relative difference from torch's outputs of a float export in the shape that is timed."""

PEERS = {
    "nncf": ("nncf_direct", None),
    "onnxruntime": ("onnxruntime_static", None),
    "torchao": ("torchao_pt2e", "torchao"),
    "neural-compressor": ("neural_compressor_pt2e", "neural-compressor[pt]"),
    "olive": ("olive_static", "olive-ai"),
}
"""Peer -> its module, and what pip installs for it beside our own dependencies."""

GRID = [
    {"preset": "performance", "ranges": ranges, "bias_correction": correction}
    for ranges, correction in product(("mean", "minmax"), ("fast", "full", "none"))
]
"""The settings that the quantize pass tries for OpenVINO, of the preset that keeps to the budget."""


class Failed(Exception):
    """A peer's process failed; the message is the last line that it wrote."""


def run(module: str, file: Path, python: Path, folder: Path) -> None:
    """Run one of the peers' modules in ``folder``.

    Raises:
        Failed: with the last line of its errors.
    """
    words = [str(python), "-m", f"benchmarks.compression_peers.{module}", str(file)]
    surroundings = environments.surroundings(threads=1)
    done = subprocess.run(words, cwd=folder, env=surroundings, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"]
        raise Failed(lines[-1])


def make(files: Files, output: Path, side: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Let a side make its models below ``output``; return what it says, or ``{"error": reason}``."""
    module, requirement = PEERS.get(side, ("pipeline", None))
    given = {key: value for key, value in asdict(files).items() if key in Job.__dataclass_fields__}
    shutil.rmtree(output, ignore_errors=True)
    job = Job(**given, output=str(output), settings=settings)
    try:
        python = environments.HERE if requirement is None else environments.interpreter(side, requirement)
        began = time.perf_counter()
        run(module, job.write(), python, Path(files.module).parent)
    except (environments.NotInstalled, Failed) as error:
        return {"error": str(error)}
    said: dict[str, Any] = storage.read_json(output / SAID)
    return {**said, "process_seconds": time.perf_counter() - began}


def compress_section(case: Case, quick: bool) -> dict[str, Any]:
    """Return the recipe's, which the whole pipeline runs."""
    values = yaml.safe_load((ROOT / case.recipe).read_text(encoding="utf-8"))
    section: dict[str, Any] = values["compress"]
    if quick:
        section |= {
            "max_drop": 1.0,
            "calibration_samples": QUICK,
            "benchmark": {"samples": 10, "batch_size": 4},
        }
        section["passes"][0]["finetune"]["epochs"] = 1
        section["passes"][-1] |= {"ranges": ["mean"], "bias_correction": ["fast"]}
    return section


def quantize_alone(section: Mapping[str, Any]) -> dict[str, Any]:
    """Return the section with no other pass than `quantize`."""
    return {**section, "passes": [item for item in section["passes"] if item["kind"] == "quantize"]}


def make_all(
    case: Case, run_folder: Path, files: Files, peers: Sequence[str], quick: bool
) -> dict[str, dict[str, Any]]:
    """Return what every side made: the original and its exports, ours, the peers'."""
    section = compress_section(case, quick)
    folder = Path(files.module).parent
    alone = quantize_alone(section)
    made: dict[str, dict[str, Any]] = {
        comparison.ORIGINAL: {"models": {"torch": files.module}},
        "float32": {"models": {"openvino": files.openvino, "onnxruntime": files.onnx}},
    }
    for side, compress in (("fmdist quantize", alone), ("fmdist pipeline", section)):
        settings = {"run": str(run_folder), "compress": compress}
        made[side] = make(files, folder / side.replace(" ", "-"), side, settings)
        say(side, made[side])
        if "error" in made[side]:
            sys.exit(f"{side} failed: {made[side]['error']}")
    for side in peers:
        made[side] = make(files, folder / side, side, {})
        say(side, made[side])
    return made


def score_draws(
    case: Case, run_folder: Path, files: Files, rows: Sequence[dict[str, Any]], quick: bool
) -> None:
    """Add ``accuracies`` to rows of models that were only calibrated: of their calibration set and others.

    A side that fails with one of them gets an ``error``.
    """
    sides = ("fmdist quantize", *PEERS)
    quantized = {
        row["side"]: row for row in rows if row["side"].split(",")[0] in sides and "error" not in row
    }
    for row in quantized.values():
        row["accuracies"] = [row["accuracy"]]
    quickly = {"benchmark": {"samples": 10, "batch_size": 1, "torch_compile": False, "memory": False}}
    compress = {**quantize_alone(compress_section(case, quick)), **quickly}
    targets = np.load(files.targets)
    for draw in range(1, DRAWS):
        folder = Path(files.module).parent / f"draw-{draw}"
        drawn = replace(files, calibration=calibration(files, draw))
        ours = {"run": str(run_folder), "compress": compress, "draw": draw}
        made = {}
        for side in dict.fromkeys(name.split(",")[0] for name in quantized):
            own = ours if side == sides[0] else {}
            made[side] = make(drawn, folder / side.replace(" ", "-"), side, own)
            say(f"{side}, calibration set {draw}", made[side])
        if "error" in made[sides[0]]:
            sys.exit(f"{sides[0]} failed: {made[sides[0]]['error']}")
        models = {row["side"]: row for side, said in made.items() for row in rows_of(side, said)}
        run_scorer(models, files, folder, scorer_interpreter(made))
        for side, row in quantized.items():
            problem = made[side.split(",")[0]].get("error") or models[side].get("error")
            if problem:
                row["error"] = f"with calibration set {draw}: {problem}"
            else:
                row["accuracies"].append(accuracy(folder, side, targets))


def run_scorer(
    rows: Mapping[str, dict[str, Any]],
    files: Files,
    folder: Path,
    python: Path,
    samples: int = 0,
    whole: bool = True,
) -> None:
    """Add to rows, by side, what `compression_peers.scorer` finds of their models; outputs go to ``folder``.

    Args:
        rows: by side; those with an error take no part.
        files: the subject's.
        folder: for the job and the outputs.
        python: that runs it.
        samples: of latency; none are taken for 0.
        whole: score the test split too.
    """
    keys = ("runtime", "file", "timed")
    job = {
        "models": {
            side: {key: row[key] for key in keys if key in row}
            for side, row in rows.items()
            if "error" not in row
        },
        "input": files.input,
        "test": files.test,
        "timed": files.timed,
        "folder": str(folder),
        "samples": samples,
        "score": whole,
    }
    storage.write_json(folder / "scorer.json", job)
    run("scorer", folder / "scorer.json", python, folder)
    for side, found in storage.read_json(folder / "measured.json").items():
        latency = found.pop("latency_ms", None)
        rows[side] |= found
        if latency is not None:
            rows[side].setdefault("latency_ms", []).append(latency)


def accuracy(folder: Path, side: str, targets: Any) -> float:
    """Return that of the outputs which the scorer wrote."""
    return float((np.load(folder / f"{side}.npy").argmax(1) == targets).mean())


def score(
    made: Mapping[str, dict[str, Any]], files: Files, rounds: int, samples: int
) -> list[dict[str, Any]]:
    """Return a row per model, scored in the first round and timed in all of them."""
    folder = Path(files.module).parent / "scored"
    folder.mkdir(exist_ok=True)
    rows = {row["side"]: row for side, said in made.items() for row in rows_of(side, said)}
    python = scorer_interpreter(made)
    for number in range(rounds):
        run_scorer(rows, files, folder, python, samples, whole=number == 0)
    finish(rows, files, folder)
    return list(rows.values())


def rows_of(side: str, said: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of what a side made, still without figures of its models."""
    if "error" in said:
        return [{"side": side, "error": said["error"]}]
    facts = {key: said[key] for key in ("seconds", "process_seconds", "note") if said.get(key)}
    models = dict(said["models"])
    timed = {"timed": models.pop("timed")} if "timed" in models else {}
    # A side of several models has a row for each, named by its runtime.
    return [
        {"side": f"{side}, {runtime}" if len(models) > 1 else side, "runtime": runtime, "file": file}
        | timed
        | facts
        for runtime, file in models.items()
    ]


def finish(rows: Mapping[str, dict[str, Any]], files: Files, folder: Path) -> None:
    """Add accuracy and sizes; float exports whose outputs at the timed shape aren't torch's are errors."""
    targets = np.load(files.targets)
    expected = np.array(rows[comparison.ORIGINAL]["timed_output"])
    for side, row in rows.items():
        output = np.array(row.pop("timed_output", []))
        file, row["timed_file"] = Path(row.pop("file", "")), row.pop("timed", None) is not None
        if "error" in row:
            continue
        row["accuracy"] = accuracy(folder, side, targets)
        size = describe(file.parent, Path(files.weights).name if side == comparison.ORIGINAL else file.name)
        row |= {"bytes": size["bytes"], "gzip_bytes": size["gzip_bytes"]}
        # bfloat16, where the CPU has it, and INT8 differ by a little; another function would by all.
        row["timed_difference"] = float(np.abs(output - expected).max() / np.abs(expected).max())
        if side.startswith("float32") and row["timed_difference"] > FAITHFUL:
            row["error"] = f"at the timed shape its outputs are not torch's ({row['timed_difference']:.3f})"


def scorer_interpreter(made: Mapping[str, dict[str, Any]]) -> Path:
    """Return the Python that runs every side's model: one that knows torchao's operators, if any does."""
    for side in ("torchao", "neural-compressor"):
        if side in made and "error" not in made[side]:
            return environments.interpreter(side, str(PEERS[side][1]))
    return environments.HERE


def wall(case: Case, run_folder: Path, files: Files, rounds: int, quick: bool) -> dict[str, Any]:
    """Return how long the pipeline and the bare calls take, by turns."""
    folder = Path(files.module).parent
    grid = GRID[:1] if quick else GRID
    names = {key: sorted({setting[key] for setting in grid}) for key in ("ranges", "bias_correction")}
    quantize = {"kind": "quantize", "presets": ["performance"], "accuracy_control": False, **names}
    compress = {**compress_section(case, quick), "runtimes": ["openvino"], "passes": [quantize]}
    ours: list[float] = []
    bare: list[float] = []
    for number in range(rounds):
        sides: list[tuple[str, list[float], dict[str, Any]]] = [
            ("fmdist quantize", ours, {"run": str(run_folder), "compress": compress}),
            ("nncf", bare, {"grid": grid}),
        ]
        for side, seconds, settings in sides if number % 2 == 0 else sides[::-1]:
            said = make(files, folder / "wall", side, settings)
            if "error" in said:
                return {"error": f"{side}: {said['error']}"}
            seconds.append(said["seconds"])
    return {"settings": len(grid), **comparison.wall(ours, bare)}


def say(side: str, facts: Mapping[str, Any]) -> None:
    """Tell how far it is."""
    sys.stdout.write(f"{side}: {facts.get('error') or format(facts['seconds'], '.1f') + ' s'}\n")
    sys.stdout.flush()


def measure(name: str, peers: Sequence[str], parent: Path, quick: bool) -> dict[str, Any]:
    """Return a subject's rows and what follows from them; runs and models are below ``parent``."""
    case = CASES[name]
    folder = parent / (f"{name}-quick" if quick else name)
    run_folder = train(case, folder, quick)
    files = prepare(case, run_folder, folder, quick)
    rounds, samples = (1, 5) if quick else (ROUNDS, SAMPLES)
    made = make_all(case, run_folder, files, peers, quick)
    rows = score(made, files, rounds, samples)
    score_draws(case, run_folder, files, rows, quick)
    return {
        "rows": rows,
        "quantized": comparison.quantized(rows, peers),
        "whole": comparison.whole(rows, case),
        "wall": wall(case, run_folder, files, rounds, quick),
        "rounds": rounds,
        "test_size": len(np.load(files.targets)),
        "calibration_size": len(np.load(files.calibration)),
        "timed_shape": case.timed,
        "versions": found_versions(made),
    }


def found_versions(made: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """Return the versions of the packages that made the models."""
    found = environments.versions(environments.HERE, ["nncf", "openvino", "onnxruntime", "torch"])
    for side, package in (("torchao", "torchao"), ("neural-compressor",) * 2, ("olive", "olive-ai")):
        if side in made and "error" not in made[side]:
            python = environments.interpreter(side, str(PEERS[side][1]))
            found |= environments.versions(python, [package])
    return found


def main() -> None:
    """Measure what is chosen, all by default; the results of the rest stay as they are."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subjects", nargs="*", help=f"of {', '.join(CASES)}; all by default")
    parser.add_argument("--quick", action="store_true", help="one epoch, few samples; writes no results")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS), help="all by default")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="for runs and models")
    arguments = parser.parse_args()
    if unknown := set(arguments.subjects) - set(CASES):
        parser.error(f"unknown subject {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    path = RESULTS / "compression.json"
    results = storage.read_json(path) if path.exists() and not arguments.quick else {}
    results = {name: results[name] for name in CASES if name in results}
    for name in arguments.subjects or CASES:
        measured = measure(name, arguments.peers, arguments.folder.resolve(), arguments.quick)
        results[name] = {**origin(), **measured}
        sys.stdout.write(f"{name}: {json.dumps(results[name], indent=1)}\n")
        if not arguments.quick:
            write_parts("compression", results)


if __name__ == "__main__":
    main()
