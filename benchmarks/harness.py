"""What the benchmarks share: facts about the machine, and result files that carry them."""

from __future__ import annotations

import json
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fmdist.environment import hardware

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def machine() -> dict[str, Any]:
    """Return the CPU's name, flags and cores, the system and the Python version."""
    return {**hardware(), "python": platform.python_version()}


def commit() -> str:
    """Return the commit that is measured, with ``+`` if tracked files differ from it."""
    described = subprocess.run(
        ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return described.stdout.strip() or "unknown"


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return minimum, median and maximum."""
    return {"min": min(values), "median": statistics.median(values), "max": max(values)}


def origin() -> dict[str, Any]:
    """Return the machine and the commit, for what is measured in one go."""
    return {"machine": machine(), "commit": commit()}


def write_results(name: str, results: dict[str, Any]) -> Path:
    """Write ``results/<name>.json`` with its `origin`, and return its path."""
    return write_parts(name, {**origin(), **results})


def write_parts(name: str, parts: dict[str, Any]) -> Path:
    """Write ``results/<name>.json`` of parts that are measured one by one, each with its own `origin`."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(parts, indent=2) + "\n")
    return path


def conclude(name: str, bars: dict[str, bool], results: dict[str, Any]) -> int:
    """Say which bars are met, write them with the results, and return the exit code: 1 if one is missed."""
    for text, met in bars.items():
        sys.stdout.write(f"{'met   ' if met else 'MISSED'} {text}\n")
    sys.stdout.write(f"wrote {write_results(name, {'bars': bars, **results})}\n")
    return int(not all(bars.values()))
