"""The cheapest plan of passes that keeps to limits of size, latency and speed-up, and to the drop allowed.

Plans are tried from the cheapest on: the recipe's own passes; with INT8 after training, whose accuracy
control gives layers back to float; with quantization-aware training; with channels removed. Of channels no
more go than the size and the speed ask for: since these follow from the architecture and not from the
weights, bisection finds the share without training. The validation split decides, the test split takes no
part.

What was tried is kept in ``stages/search.json``: a search that was stopped tries nothing twice.
"""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fmdist import component, console, storage
from fmdist.compression.config import REPLACES, BenchmarkConfig, CompressConfig
from fmdist.compression.passes.base import PassConfig
from fmdist.compression.pipeline import compress
from fmdist.compression.search_config import SearchConfig
from fmdist.compression.stage import FOLDER
from fmdist.compression.subject import Subject
from fmdist.environment import ARTIFACT, hardware, versions
from fmdist.errors import CapabilityError, CompressionError, DependencyMissing

TRIED = "search.json"

_MARGIN = 0.95
"""Of a latency measured without training: another measurement of the same model may differ by this."""

_LIMITS = ("max_size", "max_latency", "min_speedup")

_LEAST, _MOST = 0.05, 0.9

log = logging.getLogger(__name__)

Plan = Mapping[str, Mapping[str, Any]]
"""Kind of pass -> settings."""


@dataclass
class Search:
    """One search, for one artifact."""

    subject: Subject
    config: CompressConfig
    output: Path
    from_stage: str | None = None

    @property
    def limits(self) -> SearchConfig:
        """What plans are measured against."""
        assert self.config.search is not None
        return self.config.search

    def run(self) -> CompressionError | None:
        """Make the artifact of the first plan that keeps to all limits, or else of the best found.

        Returns:
            None, or the error that no plan does.

        Raises:
            CompressionError: if no plan could be carried out.
        """
        self._tried = self._read()
        met = next((row for row in self._rows() if row["met"]), None)
        done = [row for row in self._tried if row["figures"] and not row["probe"]]
        if not done:
            raise self._unmet("no plan could be carried out")  # noqa: EM101  not the message alone
        best = met or min(done, key=self._excess)
        record = {
            "limits": self.limits.model_dump(mode="json"),
            "met": met is not None,
            "chosen": self._tried.index(best),
            "tried": self._tried,
        }
        compress(self.subject, self._settled(best["plan"]), self.output, record=record)
        if met is not None:
            return None
        return self._unmet(f"no plan keeps to the limits; the best found is in {self.output}")

    def _rows(self) -> Iterator[dict[str, Any]]:
        """Yield plans that were tried, each once, from the cheapest on."""
        own = {settings.kind(): settings.to_recipe() for settings in self.config.passes}
        rest = {kind: settings for kind, settings in own.items() if kind not in REPLACES}
        rounding = {kind: settings for kind, settings in own.items() if kind in REPLACES}
        row = self._try("as the recipe has it", own)
        yield row
        if not rounding:
            rounding = {"quantize": {}}
            row = self._try("INT8 after training", {**rest, **rounding})
            yield row
        others = {"INT8 weights": "compress_weights", "INT8 in training": "quantize_aware"}
        if self.limits.max_latency is not None or self.limits.min_speedup is not None:
            del others["INT8 weights"]  # whose activations stay in float
        for name, kind in others.items():
            if row["lost"] and kind not in rounding:
                row = self._try(name, {**rest, kind: {}})
                rounding = {kind: {}}
                yield row
        # Fewer channels don't bring back what rounding alone loses.
        ratio = None if row["lost"] or "prune_channels" in own else self._share({**rest, **rounding})
        if ratio is not None:
            fewer = {"prune_channels": {"ratio": ratio}, **rest}
            row = self._try(f"{ratio:.1%} of the channels removed", {**fewer, **rounding})
            yield row
            if row["lost"] and "quantize_aware" not in rounding:
                name = f"{ratio:.1%} of the channels removed, INT8 in training"
                yield self._try(name, {**fewer, "quantize_aware": {}})

    def _share(self, plan: Plan) -> float | None:
        """Return the smallest share of channels without which a model would keep to size and speed."""
        low, high = _LEAST, _MOST
        if not self._probe(plan, high):
            return None
        for _ in range(self.limits.steps):
            middle = round((low + high) / 2, 3)
            low, high = (low, middle) if self._probe(plan, middle) else (middle, high)
        return high

    def _probe(self, plan: Plan, ratio: float) -> bool:
        """Return whether a model without some channels is small and fast enough, whatever it answers."""
        whole: dict[str, Any] = {"prune_channels": {"ratio": ratio}, **plan}
        if "quantize_aware" in whole:
            # The same layers in INT8, and no training.
            del whole["quantize_aware"]
            whole["quantize"] = {}
        pruned = {kind: {**settings, **_UNTRAINED.get(kind, {})} for kind, settings in whole.items()}
        fast = BenchmarkConfig(
            threads=self.config.benchmark.threads, samples=50, torch_compile=False, memory=False
        )
        config = self._settled(pruned).model_copy(update={"max_drop": 1e9, "benchmark": fast, "programs": ()})

        def figures() -> dict[str, Any]:
            with tempfile.TemporaryDirectory(dir=self.output, prefix=".probe-", suffix=".tmp") as folder:
                manifest = compress(self.subject, config, Path(folder) / "artifact").manifest
            return self._figures(manifest)

        row = self._done(f"{ratio:.1%} of the channels removed, untrained", pruned, figures, probe=True)
        return bool(row["figures"]) and not self._missed(row["figures"], _MARGIN)

    def _try(self, name: str, plan: Plan) -> dict[str, Any]:
        def figures() -> dict[str, Any]:
            again = None if self._tried else self.from_stage
            return self._figures(compress(self.subject, self._settled(plan), self.output, again).manifest)

        return self._done(name, plan, figures, probe=False)

    def _done(
        self, name: str, plan: Plan, figures: Callable[[], dict[str, Any]], probe: bool
    ) -> dict[str, Any]:
        """Return what is known of a plan, from measuring it unless that was done before."""
        for row in self._tried:
            if row["name"] == name:
                return row
        start = time.perf_counter()
        row = {"name": name, "plan": plan, "probe": probe, "figures": None, "lost": False, "refused": None}
        try:
            row["figures"] = figures()
        except (CapabilityError, DependencyMissing) as error:
            row["refused"] = " ".join(str(error).split())
        except CompressionError as error:
            row["refused"] = " ".join(str(error).split())
            row["lost"] = error.problems[0].field == "compress.max_drop"
        missed = self._missed(row["figures"]) if row["figures"] else ["max_drop"] if row["lost"] else []
        row |= {"missed": missed, "met": bool(row["figures"]) and not missed and not probe}
        row["seconds"] = round(time.perf_counter() - start, 1)
        self._tried.append(row)
        self._write()
        log.info("%s", describe(row))
        return row

    def _settled(self, plan: Plan) -> CompressConfig:
        """Return the config of a plan, without the search."""
        passes = []
        for kind, settings in plan.items():
            parsed: PassConfig = component.load(component.find("passes", kind)).model_validate_json(
                json.dumps({key: value for key, value in settings.items() if key != "kind"})
            )
            passes.append(parsed)
        passes.sort(key=lambda settings: settings.order)
        return self.config.model_copy(update={"passes": tuple(passes), "search": None})

    def _figures(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Return what limits are about, of the model that is opened by default."""
        runtime = self.limits.runtime
        rows = [
            row
            for row in manifest["results"]
            if row["runtime"] == runtime and row["precision"] == "default" and row["latency_ms"]
        ]
        if not rows:
            raise CompressionError(
                field="compress.search.runtime",
                problem="the artifact has no model for this runtime",
                value=runtime,
                fix="search for a runtime that compress.runtimes names",
            )
        last = rows[-1]
        return {
            "bytes": last["bytes"],
            "latency_ms": last["latency_ms"]["median"],
            "speedup": last["speedup"],
            "variant": last["variant"],
        }

    def _missed(self, figures: Mapping[str, Any], margin: float = 1.0) -> list[str]:
        limits = self.limits
        found = []
        if limits.max_size is not None and figures["bytes"] > int(limits.max_size):
            found.append("max_size")
        if limits.max_latency is not None and figures["latency_ms"] > limits.max_latency * margin:
            found.append("max_latency")
        if limits.min_speedup is not None and figures["speedup"] * margin < limits.min_speedup:
            found.append("min_speedup")
        return found

    def _excess(self, row: Mapping[str, Any]) -> float:
        """Return how far a plan is from the limits, as the largest ratio."""
        figures, limits = row["figures"], self.limits
        ratios = [1.0]
        if limits.max_size is not None:
            ratios.append(figures["bytes"] / int(limits.max_size))
        if limits.max_latency is not None:
            ratios.append(figures["latency_ms"] / limits.max_latency)
        if limits.min_speedup is not None:
            ratios.append(limits.min_speedup / figures["speedup"])
        return max(ratios)

    def _unmet(self, problem: str) -> CompressionError:
        return CompressionError(
            field="compress.search",
            problem=f"{problem}; tried: " + "; ".join(map(describe, self._tried)),
            value={key: limit for key in _LIMITS if (limit := getattr(self.limits, key)) is not None},
            fix="allow a larger drop, a larger or slower model, or train a smaller one",
        )

    def _read(self) -> list[dict[str, Any]]:
        file = self.output / FOLDER / TRIED
        if not file.is_file() or self.from_stage is not None:
            return []
        found = storage.read_json(file)
        return list(found["tried"]) if found["key"] == self._key() else []

    def _write(self) -> None:
        folder = self.output / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        # Its hash is among those of a sealed artifact.
        (self.output / storage.MANIFEST).unlink(missing_ok=True)
        storage.write_json(folder / TRIED, {"key": self._key(), "tried": self._tried})

    def _key(self) -> str:
        # Figures of another machine are no figures of this one.
        facts = [
            self.subject.fingerprint,
            self.config.model_dump(mode="json"),
            hardware(),
            versions(ARTIFACT),
        ]
        return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


_UNTRAINED: Mapping[str, Mapping[str, Any]] = {
    "prune_channels": {"finetune": None},
    "low_rank": {"finetune": None},
    "prune_weights": {"finetune": None},
    "quantize": {"ranges": ["mean"], "bias_correction": ["none"], "accuracy_control": False},
}
"""Settings that decide neither size nor speed, at their quickest."""


def describe(row: Mapping[str, Any]) -> str:
    """Return one line about a plan that was tried."""
    if not row["figures"]:
        return f"{row['name']}: {row['refused']}"
    figures = row["figures"]
    said = (
        f"{row['name']}: {console.human_bytes(figures['bytes'])}, {figures['latency_ms']:.3g} ms, "
        f"{figures['speedup']:.3g}x"
    )
    return f"{said} (misses {', '.join(row['missed'])})" if row["missed"] else said
