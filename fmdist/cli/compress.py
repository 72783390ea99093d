"""``fmdist compress``: a run's best checkpoint, made into a verified artifact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fmdist.cli.frame import Answer, FilePath, verb


@verb()
@click.argument("run", type=FilePath)
@click.option("--quantize", type=click.Choice(["int8"]), help="Quantize weights and activations.")
@click.option("--prune-channels", type=float, metavar="RATIO", help="Remove this share of the channels.")
@click.option(
    "--low-rank", type=float, metavar="ENERGY", help="Factor layers, keeping this share, such as 0.9."
)
@click.option("--prune-weights", type=float, metavar="SHARE", help="Make this share of the weights zero.")
@click.option(
    "--finetune-epochs", type=int, metavar="N", help="Train after those three (0: not) [default: 5]."
)
@click.option("--max-drop", type=float, metavar="X", help="Loss of the primary metric allowed, such as 0.01.")
@click.option(
    "-o", "--output", type=FilePath, metavar="DIR", help="The artifact's folder [default: artifacts/<run>]."
)
def compress(
    run: Path,
    quantize: str | None,
    prune_channels: float | None,
    low_rank: float | None,
    prune_weights: float | None,
    finetune_epochs: int | None,
    max_drop: float | None,
    output: Path | None,
) -> Answer:
    """Prune, factor and quantize a run's model for OpenVINO and ONNX; verify and measure the result."""
    from fmdist import stages

    settings: dict[str, dict[str, Any]] = {
        kind: {key: value}
        for kind, key, value in (
            ("prune_channels", "ratio", prune_channels),
            ("low_rank", "energy", low_rank),
            ("prune_weights", "sparsity", prune_weights),
        )
        if value is not None
    }
    if finetune_epochs is not None:
        for given in settings.values():
            given["finetune"] = {"epochs": finetune_epochs} if finetune_epochs else None
    if quantize is not None:
        settings["quantize"] = {"precision": quantize}
    artifact = stages.compress(run, passes=settings, max_drop=max_drop, output=output)
    data, text = describe(artifact)
    return Answer(data, f"{text}\n\nartifact: {artifact}\nreport:   {artifact / 'report.html'}")


def describe(artifact: Path) -> tuple[dict[str, Any], str]:
    """Return an artifact's results as JSON values and as a table of before and after, per runtime."""
    from fmdist import console, storage

    manifest = storage.read_json(artifact / storage.MANIFEST)
    primary = manifest["primary"]["name"]
    rows = []
    for row in manifest["results"]:
        latency = row["latency_ms"]["median"] if row["latency_ms"] else None
        rows.append(
            [
                f"{row['runtime']} {row['variant']}" + (" (f32)" if row["precision"] == "f32" else ""),
                f"{row['value']:.4f}",
                console.human_bytes(row["bytes"]),
                console.human_bytes(row["gzip_bytes"]),
                None if latency is None else f"{latency:.3f}",
                None if row["speedup"] is None else f"{row['speedup']:.1f}x",
            ]
        )
    columns = ["model", primary, "size", "gzip", "ms", "speed-up"]
    threads = manifest["benchmark"]["threads"]
    title = f"test split; latency of one sample, {threads} thread{'s' if threads > 1 else ''}"
    data = {"artifact": str(artifact), "primary": primary, "results": manifest["results"]}
    return data, console.table(title, columns, rows)
