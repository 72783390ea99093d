"""The report of an artifact, from its ``manifest.json``; see `fmdist.compression.manifest` for the keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from fmdist import storage
from fmdist.reports import files, plots
from fmdist.reports.layout import (
    Block,
    Code,
    Figure,
    Figures,
    Note,
    Page,
    Section,
    Table,
    Tile,
    duration,
    facts,
    number,
    size,
    words,
)

FORMAT = 4
VARIANTS = ("int8", "int8_weights", "int4_weights", "nf4_weights", "reduced", "fp32")
"""In the order in which loading an artifact looks for them."""
NAMES = {"torch": "torch", "openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}

Record = Mapping[str, Any]


def recognized(folder: Path) -> bool:
    """Return whether ``folder`` holds an artifact (a checkpoint has a manifest too, of another kind)."""
    manifest = files.mapping(folder / storage.MANIFEST)
    return manifest is not None and manifest.get("kind") == "artifact"


def page(folder: Path) -> Page:
    """Return the report of the artifact in ``folder``.

    Raises:
        CheckpointError: if its manifest is of an unknown format.
    """
    manifest = files.record(folder / storage.MANIFEST, FORMAT)
    rows = manifest["results"]
    sections = [
        Section("Before and after", (_verdict(manifest), _results(manifest), Figures(_bars(rows)))),
        Section("Parity", _parity(manifest["parity"], _original(manifest))),
        *(_pass(record, manifest) for record in manifest["passes"]),
        Section("Signature", _signature(manifest)),
        Section("Stages", (_stages(manifest["stages"]),)),
        Section("How it was measured", (facts(_conditions(manifest)),)),
        Section("Recipe", (Code(yaml.safe_dump(manifest["recipe"], sort_keys=False, allow_unicode=True)),)),
        Section("Environment", (facts({name: manifest[name] for name in ("versions", "hardware")}),)),
    ]
    return Page(
        kind="artifact",
        name=manifest["name"],
        status=" and ".join(sorted({row["variant"] for row in rows[1:]})),
        subtitle=f"{manifest['parameters']:,} parameters · created {manifest['created']}",
        tiles=tuple(_tiles(manifest)),
        sections=tuple(sections),
    )


def before_after(folder: Path) -> tuple[Block, ...]:
    """Return the verdict and the table of results, for the report of the run that it was made from."""
    manifest = files.record(folder / storage.MANIFEST, FORMAT)
    return (_verdict(manifest), _results(manifest))


def headline(rows: Sequence[Record]) -> Record:
    """Return the row that a user gets who just loads the artifact: smallest variant, default precision."""
    # Loading takes no other variant by itself, so a plug-in's stands behind float.
    rank = {variant: place for place, variant in enumerate(VARIANTS)}
    return min(rows[1:], key=lambda row: (rank.get(row["variant"], len(rank)), row["precision"] != "default"))


def _original(manifest: Record) -> str:
    """Return what everything is compared with, whose row is the first: torch, or a graph as it was given."""
    first = manifest["results"][0]
    name = NAMES[first["runtime"]]
    return name if first["runtime"] == "torch" else f"the original in {name}"


def _tiles(manifest: Record) -> list[Tile]:
    rows, primary = manifest["results"], manifest["primary"]
    original, best = rows[0], headline(rows)
    name = words(primary["name"])
    tiles = [
        Tile(f"test {name}", number(best["value"]), f"{NAMES[best['runtime']]} {best['variant']}"),
        Tile(
            f"{name} before", number(original["value"]), f"{NAMES[original['runtime']]} {original['variant']}"
        ),
        Tile("drop", _signed(best["drop"]), f"{number(primary['max_drop'])} allowed"),
        Tile("size ratio", f"{best['size_ratio']:.3f}", f"{size(best['bytes'])}; fp32 is 1"),
    ]
    if best["latency_ms"] is not None:
        threads = manifest["benchmark"]["threads"]
        note = f"{number(best['latency_ms']['median'])} ms a sample on {threads} thread{'s' * (threads > 1)}"
        tiles.append(Tile(f"speed-up over {_original(manifest)}", f"{best['speedup']:.1f} x", note))
    return tiles


def _verdict(manifest: Record) -> Note:
    primary, allowed = words(manifest["primary"]["name"]), manifest["primary"]["max_drop"]
    worst = max(manifest["results"][1:], key=lambda row: row["drop"])
    tested = f"on the {manifest['evaluation']['test_size']:,} test samples ({number(allowed)} allowed)"
    if worst["drop"] > allowed:
        text = f"{_label(worst)} loses {number(worst['drop'])} {primary} {tested}. "
        return Note(text + "The limit is enforced on the validation split, not here.", "warning")
    lost = f"more than {number(worst['drop'])}" if worst["drop"] > 0 else "any"
    return Note(f"No model loses {lost} {primary} {tested}.", "good")


def _results(manifest: Record) -> Table:
    rows = tuple(
        (
            f"{NAMES[row['runtime']]} {row['variant']}",
            row["precision"],
            ", ".join(f"{name} x {layers}" for name, layers in row["executed"].items()),
            number(row["value"]),
            "" if row is manifest["results"][0] else _signed(row["drop"]),
            size(row["bytes"]),
            size(row["gzip_bytes"]),
            f"{row['size_ratio']:.3f}",
            *_speed(row),
            size(row["memory"]["peak_bytes"]) if "memory" in row else "",
        )
        for row in manifest["results"]
    )
    metric, name = words(manifest["primary"]["name"]), _original(manifest)
    quality = ("model", "precision", "executed in", metric, "drop")
    cost = ("size", "gzip", "ratio", "median ms", "p10 ms", "speed-up", "per second", "peak memory")
    caption = (
        "Every row but the first is a written file, reloaded in a process without torch and the model's code "
        f"and run on the test split. Drop: how much worse than {name}; negative is better. "
        "Precision: f32 was "
        "asked for, or the runtime's default on this CPU; beside it, in what the layers with weights really "
        "ran. Ratio: bytes over those of the same runtime's fp32. Latency is of one sample, speed-up is "
        f"against {name}, throughput is in batches of {manifest['benchmark']['batch_size']}. Peak "
        "memory is that of a process that runs this model alone, its runtime included. "
        + _compiled(manifest["torch_compile"])
    )
    return Table(quality + cost, rows, caption, text_columns=3)


def _compiled(record: Record) -> str:
    if "left" in record:
        return f"torch.compile was not measured: {record['left']}."
    return (
        f"The original through torch.compile takes {number(record['latency_ms']['median'])} ms "
        f"({record['speedup']:.2f} times as fast as eager) after {duration(record['seconds'])} of compiling."
    )


def _speed(row: Record) -> tuple[str, ...]:
    if row["latency_ms"] is None:
        return ("", "", "", "")
    latency = row["latency_ms"]
    speedup, throughput = f"{row['speedup']:.2f}", number(float(row["throughput_per_s"]))
    return (number(latency["median"]), number(latency["p10"]), speedup, throughput)


def _bars(rows: Sequence[Record]) -> tuple[Figure, ...]:
    timed = [row for row in rows if row["latency_ms"] is not None]
    # Precision changes how a file runs, not the file.
    stored = list({(row["runtime"], row["variant"]): row for row in rows}.values())
    drawn = []
    if timed:
        bars = [
            plots.Bar(_label(row), row["latency_ms"]["median"], number(row["latency_ms"]["median"]))
            for row in timed
        ]
        caption = "Median time of one sample; shorter is better."
        drawn.append(Figure("Latency", plots.bars(bars, "ms"), caption))
    bars = [
        plots.Bar(f"{NAMES[row['runtime']]} {row['variant']}", row["bytes"] / 1e6, size(row["bytes"]))
        for row in stored
    ]
    drawn.append(
        Figure("Size", plots.bars(bars, "MB"), "All the files that a runtime needs; shorter is better.")
    )
    return tuple(drawn)


def _parity(rows: Sequence[Record], original: str) -> tuple[Block, ...]:
    if not rows:
        return ()
    table = Table(
        ("runtime", "batch", "max |difference|", f"max |{original}|", "relative", "tolerance"),
        tuple(
            (
                NAMES[row["runtime"]],
                number(row["batch"]),
                f"{row['max_abs_difference']:.2e}",
                number(row["max_abs_reference"]),
                f"{row['relative']:.2e}",
                f"{row['tolerance']:.0e}",
            )
            for row in rows
        ),
        f"Outputs of the float files, float32 asked for, against {original} on the same inputs.",
    )
    if broken := [row for row in rows if row["relative"] > row["tolerance"]]:
        where = ", ".join(f"{NAMES[row['runtime']]} at batch {row['batch']}" for row in broken)
        return (Note(f"Outside the tolerance: {where}.", "warning"), table)
    return (
        Note(f"The written models compute what {original} computes, within the tolerance.", "good"),
        table,
    )


def _pass(record: Record, manifest: Record) -> Section:
    blocks: list[Block] = []
    if record["on"] == "torch":
        blocks += _reduction(record)
    elif record["candidates"]:
        blocks.append(_candidates(record["candidates"], manifest))
    for runtime, coverage in record["coverage"].items():
        blocks += _coverage(runtime, coverage)
    return Section(words(record["kind"]).capitalize(), tuple(blocks))


def _reduction(record: Record) -> list[Block]:
    before, after = record["before"]["torch"], record["after"]["torch"]
    blocks: list[Block] = [
        Note(
            f"{after['parameters']:,} of {before['parameters']:,} parameters are left, of which "
            f"{after['nonzero']:,} are not zero (before: {before['nonzero']:,})."
        )
    ]
    if after["nonzero"] < before["nonzero"] and after["parameters"] == before["parameters"]:
        text = "Zeros make the compressed file smaller. On these runtimes they make nothing faster."
        blocks.append(Note(text, "warning"))
    if record["candidates"]:
        rows = tuple(
            (row["setting"], number(row["value"]), f"{row['parameters']:,}", f"{row['nonzero']:,}")
            for row in record["candidates"]
        )
        columns = ("", "on validation", "parameters", "not zero")
        blocks.append(Table(columns, rows, "What was left after each round and its training."))
    return blocks


def _candidates(candidates: Sequence[Record], manifest: Record) -> Table:
    precisions = sorted({name for row in candidates for name in row["values"]})
    rows = tuple(
        (
            NAMES[row["runtime"]],
            str(row["setting"]),
            "chosen" if row["chosen"] else "",
            *(number(row["values"].get(name)) for name in precisions),
            _signed(row["drop"]),
            number(row["error"]),
            duration(row["seconds"]),
        )
        for row in candidates
    )
    metric = words(manifest["primary"]["name"])
    headings = tuple(f"{metric} at {name}" for name in precisions)
    caption = (
        f"What was tried, scored on the {manifest['validation']['size']:,} validation samples; the test "
        "split takes no part in the choice. Output error: relative RMS difference from the float model."
    )
    columns = ("runtime", "setting", "", *headings, "drop", "output error", "time")
    return Table(columns, rows, caption, text_columns=3)


def _coverage(runtime: str, coverage: Record) -> list[Block]:
    share = coverage["changed_parameters"] / max(coverage["parameters"], 1)
    text = (
        f"{NAMES[runtime]}: {coverage['changed_layers']} of {coverage['layers']} layers with weights were "
        f"changed, {share:.1%} of their parameters."
    )
    if len(coverage.get("precisions", {})) > 1:
        held = ", ".join(f"{name} in {layers}" for name, layers in coverage["precisions"].items())
        text += f" Weights by layers: {held}."
    if not coverage["left"]:
        return [Note(text)]
    rows = tuple(
        (
            layer["name"],
            layer["type"],
            layer["reason"],
            " x ".join(map(str, layer["shape"])),
            number(layer["parameters"]),
        )
        for layer in coverage["left"]
    )
    columns = ("layer not changed as asked", "type", "reason", "shape", "parameters")
    return [Note(text, "warning"), Table(columns, rows, text_columns=3)]


def _signature(manifest: Record) -> tuple[Block, ...]:
    rows = tuple(
        (
            direction,
            item["name"],
            " x ".join("any" if side is None else str(side) for side in item["shape"]),
            item["dtype"],
        )
        for direction in ("inputs", "outputs")
        for item in manifest["signature"][direction]
    )
    rules = {name: manifest[name] for name in ("preprocessing", "decoding")}
    return (Table(("", "name", "shape", "type"), rows, text_columns=4), facts(rules))


def _stages(stages: Sequence[Record]) -> Table:
    rows = tuple((stage["name"], duration(stage["seconds"])) for stage in stages)
    total = sum(stage["seconds"] for stage in stages)
    return Table(("stage", "time"), (*rows, ("all", duration(total))))


def _conditions(manifest: Record) -> dict[str, Any]:
    names = ("source", "fingerprint", "seed", "evaluation", "benchmark")
    return {name: manifest[name] for name in names}


def _label(row: Record) -> str:
    return f"{NAMES[row['runtime']]} {row['variant']} ({row['precision']})"


def _signed(drop: float | None) -> str:
    return number(drop) if not drop else f"{drop:+.4f}"
