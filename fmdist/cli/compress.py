"""``fmdist compress``: a run's best checkpoint, made into a verified artifact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from fmdist.cli.frame import Answer, FilePath, verb
from fmdist.errors import UsageError

_SECTION = "fmdist.compress"
_TRAINING = ("prune_channels", "low_rank", "prune_weights", "quantize_aware")
_ALLOCATING = ("prune_channels", "prune_weights")


Decorator = Callable[[Callable[..., Answer]], Callable[..., Answer]]


def _setting(flag: str, path: str, kind: Any, metavar: str | None, text: str) -> Decorator:
    """Return an option whose value goes to ``path`` of the ``compress`` section; its passes go by kind."""

    def keep(context: click.Context, _: click.Parameter, value: Any) -> None:
        if value not in (None, ()):
            place = context.meta.setdefault(_SECTION, {})
            *parents, last = path.split(".")
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = value

    return click.option(
        flag, type=kind, metavar=metavar, help=text, callback=keep, expose_value=False, default=None
    )


def _pass(flag: str, text: str) -> Decorator:
    """Return an option that adds the pass of its name, as it is by default."""
    kind = flag.removeprefix("--").replace("-", "_")

    def keep(context: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            context.meta.setdefault(_SECTION, {}).setdefault("passes", {})[kind] = {}

    return click.option(flag, is_flag=True, help=text, callback=keep, expose_value=False)


@verb()
@click.argument("run", type=FilePath, metavar="RUN_OR_MODEL")
@click.option(
    "--data", type=FilePath, metavar="RECIPE", help="For a model's file: a recipe with data and task."
)
@click.option("--trust", is_flag=True, help="Read a .pt2 file, which can run code of whoever made it.")
@_setting(
    "--quantize",
    "passes.quantize.precision",
    click.Choice(["int8"]),
    None,
    "Quantize weights and activations.",
)
@_setting(
    "--prune-channels",
    "passes.prune_channels.ratio",
    float,
    "RATIO",
    "Remove this share of the channels.",
)
@_setting(
    "--latency",
    "passes.prune_channels.latency",
    float,
    "SHARE",
    "Remove channels until this share of a sample's time is left.",
)
@_setting(
    "--low-rank",
    "passes.low_rank.energy",
    float,
    "ENERGY",
    "Factor layers, keeping this share, such as 0.9.",
)
@_setting(
    "--prune-weights",
    "passes.prune_weights.sparsity",
    float,
    "SHARE",
    "Make this share of the weights zero.",
)
@_pass("--fold", "Fold BatchNorm into the layers before it.")
@_pass("--quantize-aware", "Train on with INT8's rounding.")
@_setting(
    "--compress-weights",
    "passes.compress_weights.precision",
    str,
    "PRECISION",
    "Round the weights alone: int8_asym, int4_sym, ...",
)
@click.option(
    "--finetune-epochs", type=int, metavar="N", help="Train in passes that train (0: not) [default: 5]."
)
@_setting(
    "--allocate",
    "allocate",
    click.Choice(["sensitivity"]),
    None,
    "Prune each layer by its own measured sensitivity.",
)
@click.option("--analyze", is_flag=True, help="Only measure how sensitive each layer is.")
@_setting("--max-drop", "max_drop", float, "X", "Loss of the primary metric allowed, such as 0.01.")
@_setting("--max-size", "search.max_size", str, "SIZE", "Find a plan whose model takes no more: 500KB, 2MB.")
@_setting("--max-latency", "search.max_latency", float, "MS", "Find a plan that takes no longer a sample.")
@_setting("--min-speedup", "search.min_speedup", float, "X", "Find a plan that is so many times as fast.")
@_setting("--keep-stages/--no-keep-stages", "keep_stages", None, None, "Keep what reruns go on from.")
@click.option("--from-stage", metavar="NAME", help="Do this stage, such as quantize, and all after it again.")
@click.option(
    "-o", "--output", type=FilePath, metavar="DIR", help="The artifact's folder [default: artifacts/<run>]."
)
def compress(
    run: Path,
    data: Path | None,
    trust: bool,
    finetune_epochs: int | None,
    analyze: bool,
    from_stage: str | None,
    output: Path | None,
) -> Answer:
    """Prune, factor and quantize a model for OpenVINO and ONNX; verify and measure the result.

    The model is a run's, or that of a file: .onnx, .xml (OpenVINO), .pt2 (torch.export) or .safetensors.
    """
    from fmdist import stages

    settings: dict[str, Any] = click.get_current_context().meta.get(_SECTION, {})
    if analyze:
        _check_alone(bool(settings) or finetune_epochs is not None or output is not None)
        return _analyzed(*stages.analyze(run))
    passes = settings.pop("passes", {})
    if allocate := settings.pop("allocate", None):
        _set_allocation(passes, allocate)
    if finetune_epochs is not None:
        for given in (passes[kind] for kind in _TRAINING if kind in passes):
            given["finetune"] = {"epochs": finetune_epochs} if finetune_epochs else None
    artifact = stages.compress(
        run, data, passes=passes, settings=settings, from_stage=from_stage, output=output, trust=trust
    )
    results, text = describe(artifact)
    return Answer(results, f"{text}\n\nartifact: {artifact}\nreport:   {artifact / 'report.html'}")


def _check_alone(others: bool) -> None:
    if others:
        raise UsageError(
            field="--analyze",
            problem="it measures the model as it is and compresses nothing",
            fix="leave the other options out, or leave --analyze out",
        )


def _set_allocation(passes: dict[str, Any], allocate: str) -> None:
    given = [passes[kind] for kind in _ALLOCATING if kind in passes]
    if not given:
        raise UsageError(
            field="--allocate",
            problem="it says how pruning is shared out over the layers, and none is asked for here",
            fix="give --prune-channels or --prune-weights too, or set allocate in the recipe's pass",
        )
    for settings in given:
        settings["allocate"] = allocate


def _analyzed(folder: Path, record: dict[str, Any]) -> Answer:
    """Return the record, and a table of its layers, the most sensitive first."""
    from fmdist import console

    points = {"weights": "share", "channels": "share", "bits": "bits"}
    heads = {
        key: [f"{value:.0%} {key}" if of == "share" else f"INT{value}" for value in record["settings"][key]]
        for key, of in points.items()
    }
    rows = []
    for row in record["layers"]:
        values: list[object] = []
        for key, names in heads.items():
            found = [None if point["value"] is None else f"{point['value']:.4f}" for point in row[key]]
            values += found or [None] * len(names)
        error = None if row["error"] is None else f"{row['error']:.3f}"
        rows.append([row["name"] or "(the model)", row["type"], row["parameters"], error, *values])
    metric, samples = record["primary"]["name"], record["samples"]
    title = (
        f"{metric} on {samples} validation samples with one layer changed; {record['value']:.4f} as it is; "
        "most sensitive first"
    )
    columns = ["layer", "type", "weights", "error", *(name for names in heads.values() for name in names)]
    places = f"record: {folder / 'sensitivity.json'}\nplot:   {folder / 'sensitivity.html'}"
    return Answer(record, f"{console.table(title, columns, rows)}\n\n{places}")


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
    compiled = manifest["torch_compile"]
    if "latency_ms" in compiled:
        speed = [f"{compiled['latency_ms']['median']:.3f}", f"{compiled['speedup']:.1f}x"]
        rows.insert(1, ["torch fp32 (compiled)", None, None, None, *speed])
    columns = ["model", primary, "size", "gzip", "ms", "speed-up"]
    threads = manifest["benchmark"]["threads"]
    title = f"test split; latency of one sample, {threads} thread{'s' if threads > 1 else ''}"
    if (baseline := manifest["validation"].get("baseline")) is not None:
        title += f"\non validation the trivial predictor has {primary} {baseline[primary]:.4f}"
    keys = ("results", "torch_compile")
    data = {"artifact": str(artifact), "primary": primary, **{key: manifest[key] for key in keys}}
    return data, console.table(title, columns, rows)
