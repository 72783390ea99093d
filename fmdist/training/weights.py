"""Trained weights from elsewhere: a run, an artifact, safetensors, a Hugging Face folder, a state dict."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from fmdist import storage
from fmdist.contracts import Task
from fmdist.data.preprocess import Preprocess
from fmdist.errors import CheckpointError, did_you_mean
from fmdist.training.meaning import Meaning, meaning_of
from fmdist.training.run import RECORD, read_signature

FIELD = "transfer.init_from"

_WHOLE = ("model.safetensors", "pytorch_model.bin")
_SHARDED = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WRAPPERS = ("state_dict", "model_state_dict", "model")
"""Keys under which training scripts keep a state dict in their checkpoints."""


@dataclass(frozen=True)
class Source:
    """Tensors by name, and what is known of the model that they come from."""

    tensors: Mapping[str, Tensor]
    names: tuple[str, ...] | None = None
    """Of the target; None if the source doesn't say."""
    tokenizers: Mapping[str, str] = field(default_factory=dict)
    """As `fmdist.contracts.DataSpec` has them; empty if the source doesn't say."""
    meaning: Meaning = field(default_factory=dict)
    """See `fmdist.training.meaning`; empty if the source doesn't say."""


def read_source(path: Path, role: str, open_run: Callable[[Path], Task]) -> Source:
    """Return the weights at ``path``, on the CPU.

    Args:
        path: a run, an artifact, a file, or a folder that holds one in Hugging Face's layout.
        role: which of a run's modules, if it has several.
        open_run: returns a run's task with the weights of its best checkpoint.

    Raises:
        CheckpointError: if there is nothing of the kind, or it can't be read without running code.
    """
    if (path / RECORD).is_file():
        return _of_run(path, role, open_run)
    if path.is_dir():
        return _of_folder(path)
    if path.is_file():
        return Source(_of_file(path))
    siblings = [other.name for other in path.parent.iterdir()] if path.parent.is_dir() else []
    raise CheckpointError(
        field=FIELD,
        problem="no such file or folder",
        value=str(path),
        fix=did_you_mean(path.name, siblings) or "the path is relative to the working directory",
    )


def _of_run(path: Path, role: str, open_run: Callable[[Path], Task]) -> Source:
    task = open_run(path)
    roles = task.roles()
    if role not in roles and len(roles) > 1:
        raise CheckpointError(
            field="transfer.role",
            problem=f"the run {path} has no such module",
            value=role,
            allowed=", ".join(roles),
            fix=did_you_mean(role, roles),
        )
    module = roles.get(role) or next(iter(roles.values()))
    meaning = meaning_of(Preprocess.from_json(read_signature(path)["preprocessing"]))
    return Source(module.state_dict(), task.spec.target.names, task.spec.tokenizers, meaning)


def _of_folder(path: Path) -> Source:
    if (path / storage.MANIFEST).is_file():
        manifest = storage.verify(path)
        if manifest.get("kind") == "artifact":
            preprocess = Preprocess.from_json(manifest["preprocessing"])
            names, tensors = tuple(manifest["target"]["names"]), _of_file(path / "model.safetensors")
            return Source(tensors, names, preprocess.tokenizers, meaning_of(preprocess))
    for name in _WHOLE:
        if (path / name).is_file():
            return Source(_of_file(path / name))
    for name in _SHARDED:
        if (path / name).is_file():
            return Source(_of_shards(path / name))
    raise CheckpointError(
        field=FIELD,
        problem="the folder is no run and no artifact, and holds no weights",
        value=str(path),
        allowed=", ".join((RECORD, *_WHOLE, *_SHARDED)),
        fix="for a single file, name the file",
    )


def _of_shards(index: Path) -> dict[str, Tensor]:
    """Read Hugging Face's sharded layout: ``{"weight_map": {tensor: file}}``."""
    listed = storage.read_json(index)
    files = listed.get("weight_map") if isinstance(listed, dict) else None
    if not isinstance(files, dict):
        raise CheckpointError(field=str(index), problem="not an index of shards: it has no weight_map")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(files.values())):
        if Path(name).name != name:
            raise CheckpointError(field=str(index), problem="a shard lies outside its folder", value=name)
        tensors |= _of_file(index.parent / name)
    if absent := sorted(set(files) - set(tensors)):
        raise CheckpointError(field=str(index), problem="the shards lack tensors", value=absent[:5])
    return tensors


def _of_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(str(path)))
        if path.suffix in (".pt", ".pth", ".bin"):
            return _state_dict(torch.load(path, map_location="cpu", weights_only=True), path)
    except pickle.UnpicklingError:
        raise CheckpointError(
            field=FIELD,
            problem="the file holds Python objects besides tensors; loading those can run code",
            value=str(path),
            fix="save the state dict alone: torch.save(model.state_dict(), file), or as safetensors",
        ) from None
    except (SafetensorError, RuntimeError, EOFError, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            field=FIELD, problem=f"the file can't be read ({reason})", value=str(path)
        ) from None
    raise CheckpointError(
        field=FIELD,
        problem="not a file of weights",
        value=str(path),
        allowed=".safetensors, .pt, .pth, .bin",
    )


def _state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict in what was loaded: itself, or what a training script wraps around it."""
    inside = [loaded[key] for key in _WRAPPERS if key in loaded] if isinstance(loaded, Mapping) else []
    for candidate in (loaded, *inside):
        if isinstance(candidate, Mapping) and candidate:
            tensors = {str(key): value for key, value in candidate.items() if isinstance(value, Tensor)}
            if len(tensors) == len(candidate):
                return tensors
    raise CheckpointError(
        field=FIELD,
        problem="the file holds no state dict",
        value=str(path),
        allowed=f"names with tensors, alone or under one of {', '.join(_WRAPPERS)}",
    )
