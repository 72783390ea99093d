"""Training checkpoints: a committed directory per step, never overwritten, tensors and JSON only.

::

    checkpoints/step-0000000120/      or step-0000000120-evaluated/, saved with the score of an evaluation
        <role>.safetensors            weights and buffers of each role
        ema.<role>.safetensors        their moving average, where there is one
        optimizer.<role>.safetensors  the optimizer's tensors; its numbers stand in state.json
        state.json                    step, score, position, early stopping, scaler, recipe, versions
        manifest.json                 SHA-256 of every file, written last: the commit
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file
from torch import nn

from fmdist import storage
from fmdist.errors import CheckpointError
from fmdist.training.config import RESUMABLE, CheckpointConfig
from fmdist.training.mirror import STEP, Mirror
from fmdist.training.snapshot import Snapshot, Trainables, join_optimizer

FORMAT = 1
"""Version of the directory's layout; an unknown one is refused by name."""

STATE = "state.json"

logger = logging.getLogger(__name__)


@dataclass
class Saved:
    """A committed checkpoint as its manifest and state describe it."""

    path: Path
    step: int
    score: float | None
    """The primary metric when it was saved, if it had just been evaluated."""
    state: dict[str, Any] = field(repr=False)


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        folder: where they are kept.
        mode: ``max`` if more of the score is better, else ``min``.
        config: which are kept.
        origin: ``recipe`` (resolved) and ``versions``, stored in each; those of another recipe are refused.
    """

    def __init__(
        self, folder: Path, mode: str, config: CheckpointConfig, origin: Mapping[str, Any] | None = None
    ) -> None:
        self.folder = folder
        self._mode = mode
        self._config = config
        self._origin = dict(origin or {})
        name = str(self._origin.get("recipe", {}).get("name", ""))
        self.mirror = None if config.store is None else Mirror(config.store, name)
        """Where copies are, if the recipe names a store."""

    def path(self, step: int, score: float | None) -> Path:
        """Return the folder of the checkpoint of step ``step``."""
        return self.folder / f"step-{step:010d}{'' if score is None else '-evaluated'}"

    def commit(self, step: int, copied: Snapshot, state: Mapping[str, Any], score: float | None) -> None:
        """Write what `snapshot` returned, and apply the retention."""
        path = self.path(step, score)
        facts = {"step": step, "score": score, **self._origin}
        commit = {"format": FORMAT, "kind": "checkpoint"}
        with storage.committed_directory(path, commit) as folder, _os_errors(path):
            for name, (tensors, others) in copied.files.items():
                save_file(tensors, str(folder / name), others or None)
            state = {**facts, **state, "optimizers": copied.numbers, "averaged": copied.averaged}
            storage.write_json(folder / STATE, state)
        self._retain()
        if self.mirror is not None:
            self.mirror.follow(self._steps())

    def newest(self) -> Saved | None:
        """Return the newest checkpoint that is whole, or None if none was ever written.

        A damaged one is named in a warning and set aside as ``step-N.corrupt``.

        Raises:
            CheckpointError: if there are checkpoints and all are damaged, or the newest whole one is of an
                unknown format or another recipe.
        """
        storage.remove_leftovers(self.folder)
        for path in reversed(self._steps()):
            try:
                storage.verify(path)
            except CheckpointError as error:
                aside = _set_aside(path)
                if self.mirror is None or path.name not in self.mirror.names():
                    logger.warning("%s. Set aside as %s; going back to the one before it", error, aside.name)
                    continue
                logger.warning("%s. Set aside as %s; fetching its copy", error, aside.name)
                if not self.mirror.pull(path.name, self.folder):
                    continue
            return self._describe(path)
        if damaged := sorted(path.name for path in self.folder.glob("step-*.corrupt")):
            raise CheckpointError(
                field=str(self.folder),
                problem=f"all checkpoints are damaged: {', '.join(damaged)}",
                fix="restore one from a backup, or remove the run's folder to start over",
            )
        return None

    def bring_back(self) -> None:
        """Fetch the store's checkpoints that are newer than any here; all of them if nothing is here."""
        if self.mirror is None:
            return
        here = {path.name for path in self._steps()}
        try:
            for name in self.mirror.names():
                if not here or name > max(here):
                    self.folder.mkdir(parents=True, exist_ok=True)
                    logger.info("fetching %s from %s", name, self.mirror.url)
                    self.mirror.pull(name, self.folder)
        except CheckpointError as error:
            if not here:
                raise
            logger.warning("%s. Going on from what is here", error)

    def best(self) -> Saved | None:
        """Return the whole checkpoint with the best score, the newest of equals; None if none has a score."""
        best: Saved | None = None
        for path in self._steps():
            try:
                storage.verify(path)
            except CheckpointError as error:
                logger.warning("%s. It can't be chosen as the best", error)
                continue
            saved = self._describe(path)
            if saved.score is not None and (
                best is None or best.score is None or self._better_or_equal(saved.score, best.score)
            ):
                best = saved
        return best

    def load_roles(self, saved: Saved, roles: Mapping[str, nn.Module]) -> None:
        """Restore the weights alone, which comes before shards are made of them."""
        for role, module in roles.items():
            load_weights(module, saved.path / f"{role}.safetensors")

    def load_progress(self, saved: Saved, trainables: Trainables) -> None:
        """Restore the moving averages and the optimizers."""
        for role, average in trainables.averages.items():
            load_weights(average.module, saved.path / f"ema.{role}.safetensors")
            average.n_averaged.fill_(saved.state["averaged"][role])
        for role, optimizer in trainables.optimizers.items():
            try:
                tensors = load_file(str(saved.path / f"optimizer.{role}.safetensors"))
                optimizer.load_state_dict(join_optimizer(tensors, saved.state["optimizers"][role]))
            except (FileNotFoundError, KeyError, ValueError) as error:
                raise CheckpointError(
                    field=str(saved.path),
                    problem=f"the optimizer of '{role}' doesn't fit the recipe ({error})",
                ) from None

    def _describe(self, path: Path) -> Saved:
        manifest = storage.read_json(path / storage.MANIFEST)
        if manifest.get("format") != FORMAT:
            raise CheckpointError(
                field=str(path),
                problem="a checkpoint of an unknown format",
                value=manifest.get("format"),
                allowed=str(FORMAT),
                fix="use the fmdist version that wrote it, or move it away to go on from the one before it",
            )
        state = storage.read_json(path / STATE)
        was, now = state.get("recipe"), self._origin.get("recipe")
        if was is not None and now is not None and (changed := differences(was, now)):
            raise CheckpointError(
                field=str(path),
                problem=f"a checkpoint of another recipe: it differs in {', '.join(changed)}",
                fix="move it out of this run's folder, and out of its store if it has one",
            )
        return Saved(path, state["step"], state["score"], state)

    def _better_or_equal(self, score: float, other: float) -> bool:
        return score >= other if self._mode == "max" else score <= other

    def _steps(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if STEP.fullmatch(path.name))

    def _retain(self) -> None:
        steps = self._steps()
        scores = {path: score for path in steps if (score := _score(path)) is not None}
        choose = max if self._mode == "max" else min
        best = choose(reversed(scores), key=scores.__getitem__) if scores else None
        limit = self._config.max_age_hours
        oldest = 0.0 if limit is None else time.time() - 3600 * limit
        for position, path in enumerate(steps):
            last = position == len(steps) - 1
            recent = position >= len(steps) - self._config.keep and path.stat().st_mtime >= oldest
            if not (last or recent or path == best):
                # Renamed first, so that a kill in the middle leaves no half checkpoint under a valid name.
                doomed = path.rename(path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp"))
                shutil.rmtree(doomed)


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a role's weights.

    Raises:
        CheckpointError: if they are another model's.
    """
    try:
        load_model(module, str(path))
    except (RuntimeError, FileNotFoundError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            field=str(path),
            problem=f"the weights don't fit the model of the recipe ({reason[:300]})",
        ) from None


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys of two recipes that differ and that may not change when a run is resumed."""
    return [key for key in _changed(old, new, "") if not _may_change(key)]


def _changed(old: Any, new: Any, path: str) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping) and old.get("kind") == new.get("kind"):
        for key in sorted(set(old) | set(new)):
            yield from _changed(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    elif old != new:
        yield path


def _may_change(key: str) -> bool:
    section, _, rest = key.partition(".")
    return section in ("compress", "scaling") or (section == "train" and rest.partition(".")[0] in RESUMABLE)


def _score(path: Path) -> float | None:
    """Return a checkpoint's score; None too if it is damaged, which is no reason to stop training."""
    try:
        score: float | None = storage.read_json(path / STATE)["score"]
    except (CheckpointError, KeyError, TypeError) as error:
        logger.warning("%s: no score can be read (%s)", path, error)
        return None
    return score


def _set_aside(path: Path) -> Path:
    aside = path.with_name(f"{path.name}.corrupt")
    if aside.exists():
        aside = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.corrupt")
    return path.rename(aside)


@contextmanager
def _os_errors(path: Path) -> Iterator[None]:
    """Turn what safetensors makes of a full disk back into the OSError that it was."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def parameter_count(module: nn.Module) -> int:
    """Return how many numbers are trained."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def weights_digest(module: nn.Module) -> str:
    """Return a SHA-256 over names, shapes and bytes of all weights and buffers, on any device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
