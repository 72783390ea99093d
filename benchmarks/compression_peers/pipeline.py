"""fmdist's own artifact: ``settings`` are a run's folder, a ``compress:`` section, which calibration set."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.compression_peers.job import read, tell
from benchmarks.compression_peers.subjects import open_subject
from fmdist.compression.config import CompressConfig
from fmdist.compression.pipeline import compress
from fmdist.recipe import parsing
from fmdist.stages.recipe import only


def main() -> None:
    """Compress."""
    logging.basicConfig(level=logging.ERROR)
    job = read()
    subject = open_subject(Path(job.settings["run"]))
    seed = subject.seed + job.settings.get("draw", 0)
    subject = replace(subject, recipe={**subject.recipe, "seed": seed})
    began = time.perf_counter()
    config: CompressConfig = parsing.parse({"compress": job.settings["compress"]}, only("compress"))[
        "compress"
    ]
    artifact = Path(job.output) / "artifact"
    manifest = compress(subject, config, artifact).manifest
    models = {
        runtime: str(artifact / variants["int8"]["file"]) for runtime, variants in manifest["models"].items()
    }
    # A user of the bare calls neither verifies nor measures: what the pipeline takes for both is left out.
    apart = ("verify", "benchmark")
    seconds = sum(stage["seconds"] for stage in manifest["stages"] if stage["name"].endswith(apart))
    tell(job, began + seconds, models, f"without {seconds:.1f} s of verification and benchmark")


if __name__ == "__main__":
    main()
