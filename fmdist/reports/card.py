"""The model card of an artifact: ``README.md``, as model hubs read it, from what the manifest records.

The head follows huggingface.co/docs/hub/model-cards (license, base model and its relation, metrics).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from fmdist.reports.artifact import NAMES, headline
from fmdist.reports.layout import duration, number, size, words

Record = Mapping[str, Any]

_USE = """\
```python
from pathlib import Path

from fmdist.deployment.artifact import load

model = load(Path("{folder}"))  # checks every file against manifest.json first
print(model.manifest["signature"]["inputs"])
```"""


def card(manifest: Record, folder: str) -> str:
    """Return the card's text.

    Args:
        manifest: see `fmdist.compression.manifest`; ``files`` and ``created`` aren't needed.
        folder: the artifact's name in the example of its use.
    """
    primary, license_ = manifest["primary"]["name"], manifest["recipe"].get("compress", {}).get("license")
    best, original = headline(manifest["results"]), manifest["results"][0]
    reduced = {key for variants in manifest["models"].values() for key in variants} - {"fp32", "reduced"}
    head = {
        "license": license_ or "unknown",
        "library_name": "fmdist",
        "base_model": manifest["source"],
        # The hub knows no word for a model with fewer channels.
        "base_model_relation": "quantized" if reduced else "finetune",
        "metrics": sorted(best["metrics"]),
        "tags": sorted(set(manifest["models"])),
    }
    recipe = manifest["recipe"]
    data, evaluation = recipe.get("data") or {}, manifest["evaluation"]
    passes = [f"- `{record['kind']}` ({duration(record['seconds'])})" for record in manifest["passes"]]
    lines = [
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---",
        f"# {manifest['name']}",
        f"Made by fmdist {manifest['versions']['fmdist']} from `{manifest['source']}` "
        f"({manifest['parameters']:,} parameters, weights {manifest['fingerprint'][:12]}).",
        "## What it scores",
        f"On the {evaluation['test_size']:,} samples of the test split, in the runtime named; "
        f"latency is of one sample on {manifest['hardware']['cpu']}, "
        f"{manifest['benchmark']['threads']} thread(s).",
        _table(manifest, primary),
        f"The first model to open, {NAMES[best['runtime']]} {best['variant']}, is {_ratio(original, best)} "
        f"of the original's size and loses {number(max(best['drop'], 0.0))} {words(primary)}.",
        "## What was done to it",
        *(["\n".join(passes)] if passes else ["Nothing: it was exported in float32."]),
        "## Data",
        f"`{data.get('kind', 'unknown')}`, as the recipe in manifest.json says. "
        f"{evaluation['calibration_size']:,} training samples calibrated it, "
        f"{evaluation['validation_size']:,} validation samples chose among candidates; the test split took "
        "part in neither. Whoever trained it must know what it may not be used for: the figures hold for "
        "data like this.",
        "## Use",
        _USE.format(folder=folder),
        f"License: {license_ or 'not stated by the recipe (compress.license)'}. Seed {manifest['seed']}. "
        "Every figure is in manifest.json, drawn in report.html.",
    ]
    return "\n\n".join(lines) + "\n"


def _table(manifest: Record, primary: str) -> str:
    rows = [
        f"| model | precision | {words(primary)} | size | gzip | latency | speed-up |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in manifest["results"]:
        latency = "" if row["latency_ms"] is None else f"{number(row['latency_ms']['median'])} ms"
        speedup = "" if row["speedup"] is None else f"{row['speedup']:.1f} x"
        rows.append(
            f"| {NAMES[row['runtime']]} {row['variant']} | {row['precision']} | {number(row['value'])} | "
            f"{size(row['bytes'])} | {size(row['gzip_bytes'])} | {latency} | {speedup} |"
        )
    return "\n".join(rows)


def _ratio(original: Record, best: Record) -> str:
    return f"{best['bytes'] / original['bytes']:.1%}"
