"""Load an artifact and run it: signature, preprocessing, labels and decoding come from its manifest.

Neither torch nor any model's code is imported; one of the two runtimes is enough.

Shapes: B batch, K outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fmdist import storage
from fmdist.data.preprocess import Preprocess
from fmdist.deployment.runtime import RUNTIMES, Inputs, Session, check_choice, open_model
from fmdist.errors import CheckpointError, DataError, UsageError
from fmdist.tasks.decoding import answer

REPORT = "report.html"
"""Drawn from the manifest, and not among its files."""

FORMAT = 4
VARIANTS = ("int8", "int8_weights", "int4_weights", "nf4_weights", "reduced", "fp32")
"""What an artifact may hold; the first that it has is opened unless one is asked for."""


@dataclass(frozen=True)
class Artifact:
    """A model that is ready to answer, with its manifest."""

    path: Path
    manifest: Mapping[str, Any]
    """See `fmdist.compression.manifest` for its keys."""
    runtime: str
    variant: str
    preprocess: Preprocess
    session: Session

    def outputs(self, inputs: NDArray[Any] | Inputs) -> NDArray[np.float32]:
        """Return the model's output, float32, batch first, for preprocessed inputs.

        Args:
            inputs: (B, ...) of the only input, or arrays by input name.

        Raises:
            DataError: if names, shapes or types differ from the manifest's signature, or there is no sample.
        """
        return self.session.run(self._checked(inputs))

    def predict(self, raw: NDArray[Any], options: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Return one answer per raw row, as `fmdist.tasks.decoding.answer` gives them.

        Args:
            raw: rows as `fmdist.data.preprocess` describes them, such as uint8 (B, C, H, W) images.
            options: of the answers, such as ``{"temperature": 0.8}`` for generated text.

        Raises:
            DataError: if ``raw`` isn't what the model was trained on.
            UsageError: for an option that this model's answers don't take.
        """
        if not len(raw):
            return []
        batch = {**self.preprocess(raw), "index": np.arange(len(raw))}
        return answer(self.manifest["decoding"], self.outputs, batch, options)

    def _checked(self, inputs: NDArray[Any] | Inputs) -> dict[str, NDArray[Any]]:
        signature = self.manifest["signature"]["inputs"]
        names = [item["name"] for item in signature]
        named = dict(inputs) if isinstance(inputs, Mapping) else {names[0]: inputs}
        if set(named) != set(names):
            raise DataError(
                field="inputs", problem="not the model's inputs", value=list(named), allowed=", ".join(names)
            )
        for item in signature:
            value = named[item["name"]]
            fits = value.ndim == len(item["shape"]) and all(
                want is None or have == want for have, want in zip(value.shape, item["shape"], strict=True)
            )
            if not fits or value.dtype != item["dtype"] or not len(value):
                shape = ", ".join("any" if size is None else str(size) for size in item["shape"])
                raise DataError(
                    field=f"inputs.{item['name']}",
                    problem="an array of the wrong shape or type",
                    value=f"{value.dtype} {value.shape}",
                    allowed=f"{item['dtype']} ({shape}), at least one sample",
                )
        return named


def load(
    path: Path,
    runtime: str = "openvino",
    variant: str | None = None,
    precision: str = "default",
    threads: int | None = None,
) -> Artifact:
    """Verify an artifact's files and open one of its models.

    Args:
        path: the artifact's folder.
        runtime: ``openvino`` or ``onnxruntime``.
        variant: a name of `VARIANTS`; by default the first of them that the artifact has.
        precision: ``f32`` or ``default``, see `fmdist.deployment.runtime.open_model`.
        threads: CPU threads; None leaves it to the runtime.

    Raises:
        CheckpointError: if this is no artifact, its format is unknown, or a file is missing or changed.
        UsageError: if the artifact has no such model.
        DependencyMissing: if the runtime is not installed.
    """
    manifest = read_manifest(path)
    check_choice("runtime", runtime, RUNTIMES)
    models = manifest["models"].get(runtime, {})
    chosen = variant or next((name for name in VARIANTS if name in models), "fp32")
    if chosen not in models:
        written = [f"{name} {key}" for name, variants in manifest["models"].items() for key in variants]
        raise UsageError(
            field="variant",
            problem="the artifact has no such model",
            value=f"{runtime} {chosen}",
            allowed=", ".join(written),
        )
    session = open_model(_listed(path, manifest, models[chosen]), runtime, precision, threads)
    preprocess = Preprocess.from_json(manifest["preprocessing"])
    return Artifact(path, manifest, runtime, chosen, preprocess, session)


def _listed(path: Path, manifest: Mapping[str, Any], described: Mapping[str, Any]) -> Path:
    """Return a model's file; what runs is only what was checked, the .bin that a runtime adds included."""
    needed = {described["file"], *described["files"]}
    if described["file"].endswith(".xml"):
        needed.add(described["file"].removesuffix(".xml") + ".bin")
    if unknown := sorted(needed - manifest["files"].keys()):
        raise CheckpointError(
            field=str(path / storage.MANIFEST),
            problem="a model's file isn't among the files with a SHA-256",
            value=unknown[0],
        )
    return storage.inside(path, described["file"])


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of an artifact after checking every file's hash.

    Raises:
        CheckpointError: if this is no artifact, its format is unknown, or a file is missing or changed.
    """
    if not (path / storage.MANIFEST).is_file():
        raise CheckpointError(
            field=str(path),
            problem="this is no finished artifact: it has no manifest.json",
            fix="compress a run with 'fmdist compress RUN'; a stopped compression resumes the same way",
        )
    manifest = storage.read_json(path / storage.MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("kind") != "artifact":
        raise CheckpointError(field=str(path), problem="this manifest.json isn't an artifact's")
    if manifest.get("format") != FORMAT:
        raise CheckpointError(
            field=f"{path / storage.MANIFEST}: format",
            problem="written in a format that this version doesn't read",
            value=manifest.get("format"),
            allowed=str(FORMAT),
            fix="compress the run again, or use the version of fmdist that wrote it "
            "(a later one, if the number is larger)",
        )
    if storage.OWN_HASH not in manifest:
        raise CheckpointError(
            field=str(path / storage.MANIFEST), problem=f"it lacks '{storage.OWN_HASH}', so it was changed"
        )
    if (path / REPORT).is_file():
        storage.check_stamp(path / REPORT)
    return storage.verify(path)
