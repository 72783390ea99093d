"""``fmdist evaluate``: the scores of a run or an artifact on a split."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fmdist.cli.frame import Answer, FilePath, verb

with_target = click.argument("target", type=FilePath, metavar="RUN_OR_ARTIFACT")
with_runtime = click.option(
    "--runtime",
    default="openvino",
    metavar="NAME",
    help="openvino (default) or onnxruntime, for an artifact.",
)


@verb()
@with_target
@click.option("--split", default="test", metavar="NAME", help="train, validation or test (default).")
@with_runtime
def evaluate(target: Path, split: str, runtime: str) -> Answer:
    """Score a run's best checkpoint, or an artifact in its runtime, beside the trivial baseline."""
    from fmdist import stages

    scores = stages.evaluate(target, split=split, runtime=runtime)
    where = f" in {scores['runtime']} ({scores['variant']})" if "runtime" in scores else ""
    title = f"{split} split, {scores['size']} samples{where}"
    return Answer(scores, describe(title, scores))


def describe(title: str, scores: dict[str, Any]) -> str:
    """Return metrics beside their baseline, and the primary metric's interval where it has one."""
    from fmdist import console

    rows = [[name, value, scores["baseline"][name]] for name, value in scores["metrics"].items()]
    table = console.table(title, ["metric", "model", "baseline"], rows)
    if scores["interval"] is None:
        return table
    low, high = scores["interval"]
    return f"{table}\n\n95% interval of {scores['primary']}: {low:.4g} to {high:.4g}"
