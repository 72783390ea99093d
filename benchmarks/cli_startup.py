"""CPU seconds that light commands take from start to end.

Run with ``python -m benchmarks.cli_startup``; takes about 5 s. Each command runs once to warm the file cache
and then ten times; counted is the user and system time of the process and its children.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benchmarks.harness import spread, write_results

COMMANDS = (("--help",), ("train", "--help"), ("list", "models"))
RUNS = 10
LIMIT_S = 0.20


def cpu_seconds(arguments: tuple[str, ...]) -> float:
    """Run ``fmdist`` with these arguments and return the CPU time that it took, in seconds."""
    command = str(Path(sys.executable).with_name("fmdist"))
    with Path(os.devnull).open("w") as nowhere:
        process = os.posix_spawn(
            command,
            [command, *arguments],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, nowhere.fileno(), 1)],
        )
        _, status, usage = os.wait4(process, 0)
    if os.waitstatus_to_exitcode(status):
        message = f"fmdist {' '.join(arguments)} failed"
        raise RuntimeError(message)
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    """Measure, write results/cli_startup.json, and return 1 if a median is over the limit."""
    measured = {}
    for arguments in COMMANDS:
        cpu_seconds(arguments)
        measured["fmdist " + " ".join(arguments)] = spread([cpu_seconds(arguments) for _ in range(RUNS)])
    path = write_results("cli_startup", {"runs": RUNS, "limit_s": LIMIT_S, "cpu_seconds": measured})
    for name, seconds in measured.items():
        numbers = "  ".join(f"{label} {value:.3f}" for label, value in seconds.items())
        sys.stdout.write(f"{name:<22} {numbers}  (CPU s)\n")
    sys.stdout.write(f"wrote {path}\n")
    return int(any(seconds["median"] > LIMIT_S for seconds in measured.values()))


if __name__ == "__main__":
    sys.exit(main())
