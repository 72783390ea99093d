"""How sensitive each layer is: one at a time is changed, and the validation split tells what that costs.

Sources: per-layer sensitivity to zeroed weights, Han et al. 2015 (arXiv:1506.02626); to removed channels, Li
et al. 2017 (arXiv:1608.08710).

The record (JSON values, what ``sensitivity.json`` holds)::

    format            1
    key               SHA-256 of the weights, the settings and the data: decides whether it still holds
    primary           {name, mode}
    value             the primary metric of the model as it is
    samples           of the validation split, on which all is measured
    settings          see `fmdist.compression.sensitivity_config.SensitivityConfig`
    seconds           that it took
    layers            most sensitive first, by `drop`, then by `error`:
        name, type, parameters
        drop, error   means over the points of ``weights``; null if one of them isn't finite
        weights       points {share, value, drop, error}: this share of the weights is zero
        channels      the same for output channels; [] where there are none that could go
        bits          points {bits, value, drop, error}: the weights are rounded to integers

A point's ``drop`` is how much worse the primary metric is, in its own units; ``error`` is the relative RMS
difference of the outputs, which still tells layers apart where the metric doesn't. Both are null, and
``value`` too, where the outputs are no longer finite.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fmdist import storage
from fmdist.compression.passes import batchnorm
from fmdist.compression.passes import layers as found_layers
from fmdist.compression.passes.trial import relative_rms
from fmdist.compression.sensitivity_config import SensitivityConfig
from fmdist.compression.subject import calibration_rows, drop, score
from fmdist.contracts import Draw, Task
from fmdist.data.splits import DataSplits
from fmdist.environment import versions
from fmdist.errors import CheckpointError, CompressionError
from fmdist.tasks import decoding
from fmdist.training.checkpoint import weights_digest
from fmdist.training.evaluation import as_arrays, runner

FORMAT = 1
FILE = "sensitivity.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """What is measured."""

    task: Task
    """Its roles hold the weights, on the CPU, in evaluation mode; they are the same afterwards."""
    example: tuple[Tensor, ...]
    """Inputs of what the task serves."""
    splits: DataSplits
    seed: int

    @property
    def served(self) -> nn.Module:
        """What the task serves."""
        return self.task.served(self.task.roles())


def recorded(
    model: Model, config: SensitivityConfig, file: Path, between: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Return the record in ``file`` if it is of these weights and settings; else measure and write it."""
    key = _key(model, config)
    if file.is_file():
        try:
            found = storage.read_json(file)
            if isinstance(found, dict) and found.get("format") == FORMAT and found.get("key") == key:
                log.info("%s: of these weights and settings already", file)
                return found
            log.info("%s: of other weights or settings; measuring again", file)
        except CheckpointError as error:
            log.warning("%s; measuring again", error)
    record = {"format": FORMAT, "key": key, **measure(model, config, between)}
    file.parent.mkdir(parents=True, exist_ok=True)
    storage.write_json(file, record)
    return record


def measure(
    model: Model, config: SensitivityConfig, between: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Return the record without its ``format`` and ``key``.

    Args:
        model: is left as it was.
        config: what is done to each layer.
        between: called before each layer; may raise, to end the work there.
    """
    began = time.perf_counter()
    scorer, served = _Scorer(model, config.samples), model.served
    layers = _own_weights(served)
    final = found_layers.last(served, model.example, found_layers.with_weights(served))
    norms = _norms_after(served, model.example)
    rows = []
    for name, layer in layers.items():
        between()
        with_channels = name != final and found_layers.channel_axis(layer) is not None
        row = {"name": name, "type": type(layer).__name__}
        rows.append(row | scorer.layer(layer, norms.get(name), config, with_channels))
        log.info("%s: drop %s, output error %s, on average", name, rows[-1]["drop"], rows[-1]["error"])
    name, mode = model.task.primary
    return {
        "primary": {"name": name, "mode": mode},
        "value": scorer.value,
        "samples": scorer.samples,
        "settings": config.model_dump(mode="json"),
        "seconds": round(time.perf_counter() - began, 3),
        "layers": sorted(rows, key=_rank),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _rank(row: Mapping[str, Any]) -> tuple[float, float]:
    """Return what sorts layers, most sensitive first; drops that differ by rounding are equal."""
    drop_, error = (math.inf if row[key] is None else row[key] for key in ("drop", "error"))
    return -round(drop_, 9) if math.isfinite(drop_) else -math.inf, -error


class _Scorer:
    """Scores the task as it is now on a part of the validation split, against how it was at first."""

    def __init__(self, model: Model, samples: int) -> None:
        split = model.splits.validation
        rows = calibration_rows(split.targets, min(samples, len(split)), model.seed)
        self.samples = len(rows)
        self._task = model.task
        self._targets: NDArray[Any] = split.targets[rows]
        parts = np.array_split(rows, -(-len(rows) // decoding.BATCH))
        self._batches = [as_arrays(split.__getitems__(Draw(0, part))) for part in parts]
        self._reference = self._rows()
        self.value = score(self._task, self._reference, self._targets)[self._task.primary[0]]

    def layer(
        self, layer: nn.Module, norm: nn.Module | None, config: SensitivityConfig, with_channels: bool
    ) -> dict[str, Any]:
        """Return what the record says of a layer that ``norm`` follows."""
        tensors = list(found_layers.weights(layer).values())
        own = list(layer.parameters(recurse=False))
        both = own + ([] if norm is None else list(norm.parameters()))
        weights, channels = [], []
        for share in config.weights:
            point = self.changed(own, partial(_zero_weights, tensors, share))
            weights.append({"share": share, **point})
        for share in config.channels if with_channels else ():
            point = self.changed(both, partial(_zero_channels, layer, norm, share))
            channels.append({"share": share, **point})
        bits = [{"bits": bits, **self.changed(own, partial(_round, layer, bits))} for bits in config.bits]
        return {
            "parameters": sum(value.numel() for value in tensors),
            "drop": _mean([point["drop"] for point in weights]),
            "error": _mean([point["error"] for point in weights]),
            "weights": weights,
            "channels": channels,
            "bits": bits,
        }

    def changed(self, tensors: Sequence[Tensor], change: Callable[[], None]) -> dict[str, Any]:
        """Return the point after ``change``, which touches these tensors only and is undone."""
        before = [value.detach().clone() for value in tensors]
        with torch.no_grad():
            try:
                change()
                rows = self._rows()
                value = score(self._task, rows, self._targets)[self._task.primary[0]]
            except CompressionError:  # the outputs are no longer finite
                return {"value": None, "drop": None, "error": None}
            finally:
                for tensor, old in zip(tensors, before, strict=True):
                    tensor.copy_(old)
        lost = drop(self._task, self.value, value)
        return {"value": value, "drop": lost, "error": relative_rms(rows, self._reference)}

    def _rows(self) -> NDArray[np.float32]:
        run, rule = runner(self._task, self._task.roles(), torch.device("cpu")), self._task.decoding()
        return np.concatenate([decoding.rows(rule, run, batch, decoding.BATCH) for batch in self._batches])


def _own_weights(served: nn.Module) -> dict[str, nn.Module]:
    """Return the layers by name; of those that share all their weights, the first."""
    seen: set[int] = set()
    found = {}
    for name, layer in found_layers.with_weights(served).items():
        own = {id(value) for value in found_layers.weights(layer).values()}
        if not own <= seen:
            found[name] = layer
        seen |= own
    return found


def _norms_after(served: nn.Module, example: tuple[Tensor, ...]) -> dict[str, nn.Module]:
    """Return the BatchNorm that reads a layer's outputs directly: a removed channel has none of it either."""
    found = batchnorm.sources(served, example).items()
    return {source: served.get_submodule(norm) for norm, source in found if source is not None}


def _zero_weights(tensors: Sequence[Tensor], share: float) -> None:
    for value in tensors:
        value[value.abs() <= found_layers.smallest(value.abs().flatten(), share)] = 0


def _zero_channels(layer: nn.Module, norm: nn.Module | None, share: float) -> None:
    axis = found_layers.channel_axis(layer)
    assert axis is not None
    weight = layer.get_parameter("weight")
    norms = weight.movedim(axis, 0).flatten(1).norm(dim=1)
    gone = norms.argsort(stable=True)[: min(round(share * len(norms)), len(norms) - 1)]
    weight.index_fill_(axis, gone, 0.0)
    others = [layer.bias] + ([] if norm is None else [norm.weight, norm.bias])
    for value in others:
        if isinstance(value, Tensor):
            value[gone] = 0


def _round(layer: nn.Module, bits: int) -> None:
    """Round a layer's weights to the nearest of 2**bits - 1 levels around zero, per output channel."""
    largest = 2 ** (bits - 1) - 1
    axis = found_layers.channel_axis(layer) or 0
    for value in found_layers.weights(layer).values():
        kept = [position for position in range(value.ndim) if position != axis]
        scale = value.abs().amax(dim=kept, keepdim=True) / largest
        scale[scale == 0] = 1
        value.copy_((value / scale).round() * scale)


def _key(model: Model, config: SensitivityConfig) -> str:
    decides = {
        "weights": weights_digest(model.served),
        "settings": config.model_dump(mode="json"),
        "data": model.splits.record.get("sha256"),
        "primary": model.task.primary,
        "seed": model.seed,
        "versions": versions(("fmdist", "torch", "numpy")),
    }
    return hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
