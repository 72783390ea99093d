"""Every shipped recipe, whole, as a user runs it: its metric against its baseline and its bar, INT8 and time.

Run with ``make bench-families``, or ``python -m benchmarks.families NAME...`` for some of them. A recipe's
header may state a bar, ``bar  accuracy at least 0.975``, and has the Python that makes its data. Recipes
whose data isn't here (published files that must be downloaded) are listed as not run.
Every row keeps the commit that it was measured at; rows of recipes that were not named stay.
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

import yaml

from benchmarks.harness import RESULTS, ROOT, commit, write_results
from fmdist import storage

RECIPES = ROOT / "recipes"
FILE = RESULTS / "families.json"
SNIPPET = re.compile(r"^#\s+python - <<'END'\n(.*?)^#\s+END$", re.MULTILINE | re.DOTALL)
BAR = re.compile(r"^#\s+bar\s+(\S+) at (least|most) (-?[\d.]+)", re.MULTILINE)
NEEDS = re.compile(r"\bruns/([A-Za-z0-9_]+)")
COLUMNS = ("recipe", "model", "data", "metric", "value", "baseline", "bar", "INT8 drop", "INT8 size", "CPU s")


def make_data(recipe: str, folder: Path) -> None:
    """Run the Python of a recipe's header in ``folder``; nothing if it has none."""
    if snippet := SNIPPET.search(recipe):
        (folder / "data").mkdir(exist_ok=True)
        script = folder / "make_data.py"
        script.write_text(textwrap.dedent(re.sub(r"^# ?", "", snippet[1], flags=re.MULTILINE)))
        subprocess.run([sys.executable, script.name], cwd=folder, check=True)


def needs(recipe: str) -> list[str]:
    """Return the names of the runs that a recipe builds upon: a teacher, a judge, a start."""
    return sorted(set(NEEDS.findall("\n".join(x for x in recipe.splitlines() if not x.startswith("#")))))


def one(name: str, folder: Path) -> dict[str, Any]:
    """Run a recipe in ``folder``, after those that it needs, and return its row."""
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    for other in needs(text):
        if not (folder / "runs" / other / "run.json").exists():
            one(other, folder)
    values = yaml.safe_load(text)
    row: dict[str, Any] = {
        "recipe": name,
        "model": values["model"]["kind"],
        "data": values["data"]["kind"],
        "commit": commit(),
    }
    make_data(text, folder)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(
        [str(Path(sys.executable).with_name("fmdist")), "run", str(RECIPES / f"{name}.yaml"), "-q"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Ray's processes are no children of ours, so that their time isn't known.
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    row["cpu_seconds"] = None if values.get("scaling") else used
    if ended.returncode:
        return {**row, "error": ended.stderr.strip().splitlines()[-1] if ended.stderr.strip() else "failed"}
    scores = storage.read_json(folder / "runs" / name / "evaluation" / "test.json")
    primary = scores["primary"]
    row |= {key: scores[key] for key in ("primary", "mode", "metrics", "baseline", "interval", "size")}
    if bar := BAR.search(text):
        metric, side, limit = bar[1], bar[2], float(bar[3])
        value = scores["metrics"][metric]
        met = value >= limit if side == "least" else value <= limit
        row["bar"] = {"metric": metric, "side": side, "limit": limit, "value": value, "met": met}
    artifact = folder / "artifacts" / name / storage.MANIFEST
    if artifact.exists():
        row["int8"] = {
            result["runtime"]: {key: result[key] for key in ("value", "drop", "size_ratio", "speedup")}
            for result in storage.read_json(artifact)["results"]
            if result["variant"] not in ("fp32", "reduced") and result["precision"] == "default"
        }
    sys.stdout.write(f"{name}: {primary} {scores['metrics'][primary]:.4f}, {used:.0f} CPU s\n")
    sys.stdout.flush()
    return row


def table(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Return the lines of the README's table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for name, row in sorted(rows.items()):
        if "error" in row:
            continue
        metric = row["bar"]["metric"] if "bar" in row else row["primary"]
        bar = "-"
        if "bar" in row:
            sign = ">=" if row["bar"]["side"] == "least" else "<="
            bar = f"{sign} {row['bar']['limit']:g}" + ("" if row["bar"]["met"] else " (missed)")
        int8 = row.get("int8", {})
        drops = " / ".join(f"{side['drop']:.4f}" for side in int8.values()) or "-"
        sizes = " / ".join(f"{side['size_ratio']:.2f}" for side in int8.values()) or "-"
        cells = (
            name,
            row["model"],
            row["data"],
            metric,
            f"{row['metrics'][metric]:.4g}",
            f"{row['baseline'][metric]:.4g}",
            bar,
            drops,
            sizes,
            "-" if row["cpu_seconds"] is None else f"{row['cpu_seconds']:.0f}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> int:
    """Measure, write results/families.json after every recipe, return 1 if a bar is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="recipes; all by default")
    parser.add_argument("--table", action="store_true", help="only print the README's table")
    arguments = parser.parse_args()
    rows = storage.read_json(FILE)["rows"] if FILE.exists() else {}
    if not arguments.table:
        known = sorted(path.stem for path in RECIPES.glob("*.yaml"))
        with tempfile.TemporaryDirectory() as folder:
            for name in arguments.names or known:
                rows[name] = one(name, Path(folder))
                write_results("families", {"rows": {key: rows[key] for key in sorted(rows)}})
    sys.stdout.write("\n".join(table(rows)) + "\n")
    failed = {name: row["error"] for name, row in rows.items() if "error" in row}
    for name, error in failed.items():
        sys.stdout.write(f"not run: {name}: {error}\n")
    missed = [name for name, row in rows.items() if "bar" in row and not row["bar"]["met"]]
    sys.stdout.write(f"missed bars: {', '.join(missed) or 'none'}\n")
    return int(bool(missed))


if __name__ == "__main__":
    sys.exit(main())
