"""``fmdist evaluate``: the scores of a run or an artifact on a split."""

from __future__ import annotations

from pathlib import Path

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
    from fmdist import console, stages

    scores = stages.evaluate(target, split=split, runtime=runtime)
    rows = [[name, value, scores["baseline"][name]] for name, value in scores["metrics"].items()]
    where = f" in {scores['runtime']} ({scores['variant']})" if "runtime" in scores else ""
    title = f"{split} split, {scores['size']} samples{where}"
    low, high = scores["interval"]
    table = console.table(title, ["metric", "model", "baseline"], rows)
    return Answer(scores, f"{table}\n\n95% interval of {scores['primary']}: {low:.4g} to {high:.4g}")
