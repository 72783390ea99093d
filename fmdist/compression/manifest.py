"""The artifact's ``manifest.json``: what each key means, and the function that assembles it.

``fmdist.storage.seal`` writes it last, which commits the artifact. Numbers are in the unit that their name
ends in; ``bytes`` without a prefix is the size on disk. Metrics are plain numbers by name. A key marked `?`
may be missing; every other key is always there.

::

    format            4
    kind              "artifact"
    name              the recipe's name
    created           UTC, ISO 8601
    source            the run that it was made from; for a model from elsewhere its file, or its class
    fingerprint       SHA-256 of the trained weights; of a file or a module from elsewhere, of that
    seed              the recipe's seed
    signature         {inputs: [{name, shape, dtype}], outputs: [{name, shape, dtype}]}; null is a free axis
    preprocessing     what `fmdist.data.preprocess.Preprocess.from_json` reads
    target            {kind: see `fmdist.contracts.TargetSpec`, names: [...]}
    labels            the target's names, in the order of the outputs
    decoding          the rule that `fmdist.tasks.decoding` takes
    primary           {name, mode: "max"|"min", max_drop}; max_drop is in the metric's own units
    parameters        number of weights of the original model
    imported?         of a graph from elsewhere (ONNX, OpenVINO IR): {file: the graph as it came but for the
                      names of its inputs and output, batch: how many samples it takes, null for any,
                      nodes: {runtime: {before, after}} folding constants, skipped: {runtime: why it has
                      no model}}
    models            {runtime: {variant: {file, files, bytes, gzip_bytes, size_ratio}}}
                      runtime: "openvino"|"onnxruntime"; variant: "fp32"|"reduced"|"int8"|
                      "int8_weights"|"int4_weights"|"nf4_weights"; "reduced" is what the passes
                      on the torch model left, in float32; of "..._weights" only the weights are in that
                      precision. `file` is what a runtime opens, `files` all that it needs; size_ratio =
                      bytes / bytes of the same runtime's fp32
    results           rows, one per (runtime, variant, precision), the original's first; on the TEST split:
        runtime         "torch" (the original, where there is a module) | "openvino" | "onnxruntime"
        variant         as in `models`; "original" is a graph from elsewhere in its own runtime, and then
                        there is no row of torch
        precision       "f32" (asked for) | "default" (what the runtime chooses on this CPU)
        executed        {precision: number of layers with weights that really ran in it}, such as
                        {"int8": 6}, {"bf16": 6} or {"f32 with int4 weights": 6}; {} for torch
        metrics         {name: value}
        value           the primary metric
        drop            by how much `value` is worse than the original's, >= 0 if worse, in its own units
        bytes, gzip_bytes    of the files that the runtime needs (torch: model.safetensors)
        size_ratio      bytes / bytes of the same runtime's fp32
        latency_ms      {median, p10} of one sample
        throughput_per_s  samples per second, at the benchmark's batch size
        speedup         the original's median latency / this one's
        memory?         {peak_bytes, added_bytes} of a process that runs this model alone, one sample at a
                        time: all that it held, and what came after its runtime was imported
    parity            rows: {runtime, variant, batch, length, max_abs_difference, max_abs_reference, relative,
                      tolerance}; float models (float32 asked for) against the original; relative =
                      difference / reference; length is that of the free axes, null without any
    validation        {runtime of the original: {name: value}, size, baseline?}: the original on the split
                      that chose candidates; a model from elsewhere beside the trivial predictor
    passes            one per pass, in order:
        stage           name of its folder under stages/
        kind, config    as in the recipe
        seconds         that it took
        on              "torch": before the export | "exported": on the models of the runtimes
        candidates      on "exported", rows: {runtime, setting, values: {precision: primary metric on
                        validation}, value (the worst of them), drop, error, seconds, chosen}; drop and error
                        (relative RMS difference of the outputs) are against the float model.
                        On "torch", its rounds: {setting, value (on validation), parameters, nonzero}, and
                        before them what a search for a latency tried, with value null
        coverage        {runtime or "torch": {layers, changed_layers, parameters, changed_parameters,
                        left: [{name, type, shape, parameters, reason}]}}: layers that have what the
                        pass was asked for, and those that don't. On "exported" also precisions:
                        {"float"|"int8"|"int4"|"nf4": layers}; for torch also
                        changed: [{name, type, of, changed, method?}], numbers of weights; method is
                        what chose them, "magnitude" or "regularization"
        skipped         {runtime: why the pass left its model as it was}
        before, after   {runtime: {value, drop, bytes, gzip_bytes, latency_ms, throughput_per_s}}; on the test
                        split at the default precision. On "torch": {torch: {parameters, nonzero}}
    programs          {"torch_export"|"executorch": {file, files, bytes, gzip_bytes, batch (null: any),
                      difference (largest from the module, relative)}}; float32
    search            null, or of the search that found the plan: {limits, met, chosen (position in tried),
                      tried: [{name, plan: {pass: settings}, probe (measured, not trained), figures: {bytes,
                      latency_ms, speedup, variant} or null, refused (why) or null, lost (max_drop is
                      missed), missed: [limits], met, seconds}]}
    stages            rows {name, seconds}: every stage, in order
    benchmark         {threads, batch_size, samples: {"runtime-variant-precision": n}, torch_threads,
                      original}
                      original: how it ran: "eager", "program" (by torch.export: it came so, or no other
                      process can import its classes), "graph"
    torch_compile     the original through torch.compile: {latency_ms, throughput_per_s, speedup, seconds (to
                      compile), difference (largest, from eager, relative)}, or {left: why it wasn't measured}
    evaluation        {test_size, validation_size, calibration_size, split_sha256: {split: hash} or null}
    hardware          {cpu, cores, flags: [...], system}
    versions          {python, fmdist, torch, openvino?, onnx?, onnxruntime?, nncf?, numpy}
    recipe            the resolved recipe
    files             {path: {sha256, bytes}}, by `storage.seal`

``report.html`` is drawn from this file afterwards: it isn't among `files` and may be written again at any
time.

Layout: ``openvino/model.xml`` + ``.bin`` is what runs: INT8 if the model was quantized, and then FP32 stands
beside it as ``openvino/model.fp32.xml``; without a pass it is FP32. ``onnx/model.onnx`` is FP32 and
``onnx/model.int8.onnx`` (or another variant's name) what a pass left. Always ask `models` for the name.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fmdist.compression.original import TORCH
from fmdist.compression.stage import Done
from fmdist.compression.subject import Subject
from fmdist.compression.verification import row_name
from fmdist.environment import ARTIFACT, hardware, versions

FORMAT = 4

_CHUNK = 2**20


@dataclass(frozen=True)
class Records:
    """The outcomes of the stages, from which a manifest is assembled."""

    exports: Sequence[Done]
    """Of the original, and of what the passes on the torch model left of it."""
    passes: Sequence[Done]
    verify: Done
    benchmark: Done
    programs: Sequence[Done] = ()
    """None or one."""
    search: Mapping[str, Any] | None = None

    @property
    def all(self) -> tuple[Done, ...]:
        """Every stage."""
        return (*self.exports, *self.passes, *self.programs, self.verify, self.benchmark)


def describe(output: Path, file: str) -> dict[str, Any]:
    """Return ``file``, all the files that a runtime needs of it, and their size raw and through gzip."""
    files = [file, str(Path(file).with_suffix(".bin"))] if file.endswith(".xml") else [file]
    sizes = [(output / name).stat().st_size for name in files]
    return {
        "file": file,
        "files": files,
        "bytes": sum(sizes),
        "gzip_bytes": sum(_gzip_bytes(output / name) for name in files),
    }


def assemble(
    subject: Subject, max_drop: float, records: Records, evaluation: dict[str, Any]
) -> dict[str, Any]:
    """Return the manifest without the ``files`` that `fmdist.storage.seal` adds."""
    exported, verified = records.exports[0].record, records.verify.record
    models = _models(records)
    results = _results(records, models)
    target = subject.splits.spec.target
    name, mode = subject.task.primary
    return {
        "format": FORMAT,
        "kind": "artifact",
        "name": subject.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "source": subject.source,
        "fingerprint": subject.fingerprint,
        "seed": subject.seed,
        "signature": exported["signature"],
        "preprocessing": subject.splits.preprocess.to_json(),
        "target": {"kind": target.kind, "names": list(target.names)},
        "labels": list(target.names),
        "decoding": subject.task.decoding(),
        "primary": {"name": name, "mode": mode, "max_drop": max_drop},
        "parameters": exported["parameters"],
        **_imported(exported),
        "models": models,
        "results": results,
        "parity": verified["parity"],
        "validation": verified["validation"],
        "passes": [_pass(done, results) for done in records.passes],
        "search": records.search,
        "programs": records.programs[0].record["programs"] if records.programs else {},
        "stages": [
            {"name": done.name, "seconds": done.seconds}
            for done in sorted(records.all, key=lambda done: done.name)
        ],
        "benchmark": records.benchmark.record["conditions"],
        "torch_compile": _compiled(records.benchmark.record),
        "evaluation": evaluation,
        "hardware": hardware(),
        "versions": versions(ARTIFACT),
        "recipe": dict(subject.recipe),
    }


def _imported(record: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("batch", "nodes", "skipped")
    if "nodes" not in record:
        return {}
    return {"imported": {"file": record["weights"]["file"], **{key: record[key] for key in keys}}}


def _models(records: Records) -> dict[str, dict[str, Any]]:
    models: dict[str, dict[str, Any]] = {}
    for done in (*records.exports, *records.passes):
        for runtime, described in done.record["models"].items():
            models.setdefault(runtime, {})[done.record["variant"]] = dict(described)
    for variants in models.values():
        for described in variants.values():
            described["size_ratio"] = described["bytes"] / variants["fp32"]["bytes"]
    return models


def _results(records: Records, models: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return verification's rows with sizes and speed."""
    speeds = records.benchmark.record["rows"]
    measured = records.verify.record["results"]
    original = row_name(*(measured[0][key] for key in ("runtime", "variant", "precision")))
    original_ms = speeds[original]["latency_ms"]["median"]
    weights = records.exports[0].record["weights"]
    whole = models.get(measured[0]["runtime"], {}).get("fp32", {})
    rows: list[dict[str, Any]] = []
    for row in measured:
        described = (
            {**weights, "size_ratio": weights["bytes"] / whole.get("bytes", weights["bytes"])}
            if not rows
            else models[row["runtime"]][row["variant"]]
        )
        speed = speeds[row_name(row["runtime"], row["variant"], row["precision"])]
        sizes = {key: described[key] for key in ("bytes", "gzip_bytes", "size_ratio")}
        rows.append({**row, **sizes, **speed, "speedup": original_ms / speed["latency_ms"]["median"]})
    return rows


def _compiled(record: Mapping[str, Any]) -> dict[str, Any]:
    compiled = dict(record["compiled"])
    if "latency_ms" in compiled:
        eager_ms = record["rows"][row_name(*TORCH)]["latency_ms"]["median"]
        compiled["speedup"] = eager_ms / compiled["latency_ms"]["median"]
    return compiled


def _pass(done: Done, results: list[dict[str, Any]]) -> dict[str, Any]:
    record = done.record
    on_torch = "before" in record
    return {
        "stage": done.name,
        "kind": record["config"]["kind"],
        "on": "torch" if on_torch else "exported",
        "config": record["config"],
        "seconds": done.seconds,
        "candidates": record["candidates"],
        "coverage": record["coverage"],
        "skipped": record["skipped"],
        "before": {"torch": record["before"]}
        if on_torch
        else _side(record["models"], record["from"], results),
        "after": {"torch": record["after"]}
        if on_torch
        else _side(record["models"], record["variant"], results),
    }


def _side(runtimes: Mapping[str, Any], variant: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    keys = ("value", "drop", "bytes", "gzip_bytes", "latency_ms", "throughput_per_s")
    return {
        row["runtime"]: {key: row[key] for key in keys}
        for row in results
        if row["runtime"] in runtimes and row["variant"] == variant and row["precision"] == "default"
    }


def _gzip_bytes(path: Path) -> int:
    compressor = zlib.compressobj(wbits=31)
    size = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size += len(compressor.compress(chunk))
    return size + len(compressor.flush())
