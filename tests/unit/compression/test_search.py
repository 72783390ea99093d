"""The cheapest plan first; no more channels go than the limits ask for; nothing is tried twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError

from fmdist import storage
from fmdist.compression import search
from fmdist.compression.config import BenchmarkConfig, CompressConfig
from fmdist.compression.pipeline import compress
from fmdist.compression.search import Search
from fmdist.compression.search_config import SearchConfig
from fmdist.compression.subject import Subject
from fmdist.errors import CapabilityError, CompressionError

BYTES, MS = 1000.0, 10.0


class Fake:
    """Stands for `compress`: size and latency follow from the plan; some passes lose or are refused."""

    def __init__(
        self, loses: Callable[[dict[str, Any]], bool] = lambda plan: False, refuses: str = ""
    ) -> None:
        self.loses, self.refuses = loses, refuses
        self.plans: list[dict[str, Any]] = []
        self.record: Any = None

    def __call__(
        self,
        subject: Subject,
        config: CompressConfig,
        output: Path,
        again: str | None = None,
        record: Any = None,
    ) -> Any:
        plan = {settings.kind(): settings for settings in config.passes}
        self.record = record
        if record is None:
            self.plans.append(plan)
        if self.refuses in plan:
            raise CapabilityError(problem=f"{self.refuses} can't be done")
        if config.max_drop < 1e8 and self.loses(plan):
            raise CompressionError(field="compress.max_drop", problem="loses too much")
        kept = 1 - (plan["prune_channels"].ratio if "prune_channels" in plan else 0.0)  # type: ignore[attr-defined]
        small = 0.25 if set(plan) & {"quantize", "quantize_aware", "compress_weights"} else 1.0
        fast = 0.5 if set(plan) & {"quantize", "quantize_aware"} else 1.0
        row = {
            "runtime": "openvino",
            "variant": "int8",
            "precision": "default",
            "bytes": BYTES * small * kept**2,
            "latency_ms": {"median": MS * fast * kept},
            "speedup": 1 / (fast * kept),
        }
        return SimpleNamespace(manifest={"results": [row]})

    def names(self) -> list[tuple[str, ...]]:
        return [tuple(plan) for plan in self.plans]


def searching(monkeypatch: pytest.MonkeyPatch, folder: Path, fake: Fake, **limits: Any) -> Search:
    monkeypatch.setattr(search, "compress", fake)
    config = CompressConfig(max_drop=0.01, search=SearchConfig(**limits))
    folder.mkdir(exist_ok=True)
    subject: Any = SimpleNamespace(fingerprint="f")
    return Search(subject, config, folder)


def test_the_recipe_s_own_passes_come_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = Fake()
    assert searching(monkeypatch, tmp_path, fake, max_size=1000).run() is None
    assert fake.names() == [()]
    assert fake.record["met"]


def test_int8_comes_next(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = Fake()
    assert searching(monkeypatch, tmp_path, fake, min_speedup=2.0).run() is None
    assert fake.names() == [(), ("quantize",)]


def test_no_more_channels_go_than_must(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = Fake()
    assert searching(monkeypatch, tmp_path, fake, min_speedup=4.0, steps=6).run() is None
    chosen = fake.record["tried"][fake.record["chosen"]]
    # Half of the channels would do exactly; five parts in a hundred are kept for another measurement.
    assert 0.5 <= chosen["plan"]["prune_channels"]["ratio"] < 0.56
    assert [row["probe"] for row in fake.record["tried"]] == [False, False, *[True] * 7, False]
    untrained = [plan for plan in fake.plans if "prune_channels" in plan][:-1]
    assert all(plan["prune_channels"].finetune is None for plan in untrained)
    assert fake.plans[-1]["prune_channels"].finetune is not None


def test_a_loss_calls_for_training_not_for_fewer_channels(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = Fake(loses=lambda plan: "quantize" in plan)
    assert searching(monkeypatch, tmp_path, fake, min_speedup=1.5).run() is None
    assert fake.names() == [(), ("quantize",), ("quantize_aware",)]


def test_weights_alone_are_rounded_only_for_size(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = Fake(loses=lambda plan: "quantize" in plan)
    assert searching(monkeypatch, tmp_path, fake, max_size=300).run() is None
    assert fake.names() == [(), ("quantize",), ("compress_weights",)]


def test_if_nothing_helps_the_best_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = Fake(loses=lambda plan: "prune_channels" in plan)
    unmet = searching(monkeypatch, tmp_path, fake, min_speedup=4.0).run()
    assert unmet is not None
    assert "no plan keeps to the limits" in str(unmet)
    assert "INT8 after training: 250 B, 5 ms, 2x (misses min_speedup)" in str(unmet)
    assert fake.record["tried"][fake.record["chosen"]]["name"] == "INT8 after training"
    assert not fake.record["met"]


def test_a_pass_that_the_family_refuses_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = Fake(refuses="prune_channels")
    unmet = searching(monkeypatch, tmp_path, fake, min_speedup=4.0).run()
    assert "prune_channels can't be done" in str(unmet)


def test_a_stopped_search_tries_nothing_twice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def killed(plan: dict[str, Any]) -> bool:
        if "prune_channels" in plan:
            raise Killed
        return False

    first = Fake(loses=killed)
    with pytest.raises(Killed):
        searching(monkeypatch, tmp_path, first, min_speedup=4.0).run()
    second = Fake()
    assert searching(monkeypatch, tmp_path, second, min_speedup=4.0).run() is None
    assert second.names() == [("prune_channels", "quantize")]
    # Other limits are another search.
    third = Fake()
    searching(monkeypatch, tmp_path, third, min_speedup=1.5).run()
    assert third.names() == [(), ("quantize",)]


@pytest.mark.parametrize(
    ("text", "size"), [("500KB", 500_000), ("2 MB", 2_000_000), ("1.5MiB", 1_572_864), (1234, 1234)]
)
def test_sizes_are_read_as_people_write_them(text: str | int, size: int) -> None:
    assert SearchConfig(max_size=text).max_size == size


@pytest.mark.parametrize("limits", [{}, {"max_size": "2 miles"}, {"max_size": "0"}, {"min_speedup": 0.0}])
def test_limits_that_say_nothing_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        SearchConfig(**limits)


@pytest.mark.slow
def test_a_real_search_ends_with_a_sealed_artifact(subject: Subject, tmp_path: Path) -> None:
    fast = BenchmarkConfig(samples=10, batch_size=8, torch_compile=False, memory=False)
    # The float model takes 28 kB beside its graph, which alone takes as much.
    plain = compress(
        subject, CompressConfig(runtimes=("openvino",), benchmark=fast), tmp_path / "plain"
    ).manifest
    limit = plain["models"]["openvino"]["fp32"]["bytes"] + 20_000
    config = CompressConfig(
        runtimes=("openvino",), benchmark=fast, max_drop=0.5, search=SearchConfig(max_size=limit)
    )
    output = tmp_path / "artifact"
    assert Search(subject, config, output).run() is None
    manifest = storage.verify(output)
    assert manifest["search"]["met"]
    assert manifest["models"]["openvino"]["fp32"]["bytes"] <= limit
