"""Transfer learning: where a module's weights come from, and which of them are trained how fast."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fmdist.contracts import DataSpec, Task
from fmdist.errors import CapabilityError, CheckpointError, did_you_mean
from fmdist.training.adapters import add_adapters
from fmdist.training.layers import layers
from fmdist.training.meaning import Meaning
from fmdist.training.names import listing, matching
from fmdist.training.optim import scale_lr
from fmdist.training.transfer_config import TransferConfig
from fmdist.training.weights import FIELD, Source, read_source

logger = logging.getLogger(__name__)


@dataclass
class _Fit:
    """How the tensors of a source fit a module, by the module's names."""

    loaded: dict[str, Tensor] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    """Of the head, where the outputs are others."""
    missing: list[str] = field(default_factory=list)
    misfits: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    """By the source's names."""


class Transfer:
    """A recipe's ``transfer`` section at work on one module of a task.

    First `initialize`, where no checkpoint has the weights yet; then `adapt`, as often as the task is built;
    then `restrict`, where it is trained.

    Args:
        config: the section.
        task: in its initial state.
        rebuild: returns a task like it for another spec.
        seed: keys the initial weights of adapters.

    Raises:
        CapabilityError: if the task has no such module.
    """

    def __init__(
        self, config: TransferConfig, task: Task, rebuild: Callable[[DataSpec], Task], seed: int
    ) -> None:
        self.role = _role(config.role, task)
        self._config = config
        self._spec = task.spec
        self._module = task.roles()[self.role]
        self._rebuild = rebuild
        self._seed = seed

    @cached_property
    def head(self) -> list[str]:
        """Names of the tensors whose size is the number of outputs: those that one more output would change.

        A module with several heads says itself which they are (``head_prefix``). None where the outputs are
        tokens or items, which such a model shares with its inputs.
        """
        spec = self._spec
        if prefix := getattr(self._module, "head_prefix", ""):
            return [name for name, _ in self._module.named_parameters() if name.startswith(prefix)]
        if spec.target.kind not in ("class", "labels", "value"):
            return []
        wider = replace(
            spec,
            target=replace(spec.target, names=(*spec.target.names, "one more")),
            counts=(*spec.counts, 1) if spec.counts else (),
            moments=(*spec.moments, (0.0, 1.0)) if spec.moments else (),
        )
        try:
            other = dict(self._rebuild(wider).roles()[self.role].named_parameters())
        except CapabilityError:
            return []
        return [name for name, value in self._module.named_parameters() if value.shape != other[name].shape]

    def initialize(self, open_run: Callable[[Path], Task], meaning: Meaning | None = None) -> dict[str, Any]:
        """Load the weights of ``init_from`` into the module; return what was done, as JSON.

        ``meaning`` is that of the run's own inputs. Parameters and the statistics of normalization layers are
        loaded. Other buffers follow from the data (a target's scale) or the architecture.

        Raises:
            CheckpointError: naming every tensor that doesn't fit.
            CapabilityError: if a pattern matches nothing.
        """
        path = self._config.init_from
        if path is None:
            return {}
        source = read_source(path, self.role, open_run)
        wanted = _loadable(self._module)
        skipped = matching(self._config.skip, wanted, "transfer.skip", "tensor of the model")
        given = _renamed(source.tensors, self._config.rename)
        ignored = matching(self._config.ignore, given, "transfer.ignore", "tensor of init_from")
        fit = self._fit(source, given, wanted, set(skipped))
        fit.unexpected = [name for name in fit.unexpected if name not in ignored]
        self._check_vocabulary(source, fit, given, wanted)
        _check_meaning(self._spec, source.meaning, meaning or {}, fit.loaded)
        _check_fit(fit, given, wanted, path)
        with torch.no_grad():
            for name, value in fit.loaded.items():
                wanted[name].copy_(value)
        if fit.fresh:
            logger.info("the head starts fresh, since its outputs are others: %s", listing(fit.fresh))
        logger.info("%d tensors come from %s", len(fit.loaded), path)
        return {
            "init_from": str(path),
            "role": self.role,
            "loaded": len(fit.loaded),
            "fresh_head": fit.fresh,
            "skipped": skipped,
            "ignored": ignored,
        }

    def adapt(self) -> None:
        """Put the adapters in, which change the names in a checkpoint.

        Raises:
            CapabilityError: if a layer can't have one.
        """
        if self._config.lora is not None:
            add_adapters(self._module, self._config.lora, [*self.head, *self._skipped()], self._seed)

    def restrict(self) -> None:
        """Freeze parameters, and give the layers their learning rates.

        Raises:
            CapabilityError: if a pattern matches nothing, or nothing is left to train.
        """
        frozen = matching(
            self._config.freeze, dict(self._module.named_parameters()), "transfer.freeze", "parameter"
        )
        for name in frozen:
            self._module.get_parameter(name).requires_grad_(False)
        if not any(parameter.requires_grad for parameter in self._module.parameters()):
            raise CapabilityError(
                field="transfer.freeze",
                problem="nothing is left to train",
                value=list(self._config.freeze),
                fix="leave at least the head trainable",
            )
        for part in self._module.modules():
            own = list(part.parameters(recurse=False))
            running = getattr(part, "running_mean", None) is not None
            if running and own and not any(parameter.requires_grad for parameter in own):
                part.register_forward_pre_hook(_hold)
        for depth, layer in enumerate(reversed(layers(self._module))):
            for parameter in layer:
                scale_lr(parameter, self._config.lr_decay**depth)

    def _skipped(self) -> list[str]:
        names = dict(self._module.named_parameters())
        return [name for name in names if any(fnmatchcase(name, pattern) for pattern in self._config.skip)]

    def _fit(
        self, source: Source, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], skipped: set[str]
    ) -> _Fit:
        fit = _Fit()
        others = source.names is not None and source.names != self._spec.target.names
        for name, tensor in wanted.items():
            value = given.get(name)
            fits = value is not None and value.shape == tensor.shape
            if name in skipped:
                continue
            if name in self.head and (others or not fits):
                fit.fresh.append(name)
            elif value is None:
                fit.missing.append(name)
            elif not fits:
                fit.misfits.append(name)
            else:
                fit.loaded[name] = value
        # One name of a tensor that a module uses twice is enough.
        present = {id(wanted[name]) for name in fit.loaded}
        fit.missing = [name for name in fit.missing if id(wanted[name]) not in present]
        known = {*wanted, *self._module.state_dict()}
        fit.unexpected = [name for name in given if name not in known]
        if others and (prefix := getattr(self._module, "head_prefix", "")):
            fit.unexpected = [name for name in fit.unexpected if not name.startswith(prefix)]
        return fit

    def _check_vocabulary(
        self, source: Source, fit: _Fit, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]
    ) -> None:
        """Refuse embeddings of other tokens or identifiers than this run's."""
        tables = {
            id(part.weight)
            for part in self._module.modules()
            if isinstance(part, nn.Embedding | nn.EmbeddingBag)
        }
        sizes = {
            (size,) for size in (self._spec.target.size, *(item.size for item in self._spec.inputs)) if size
        }
        rows = {
            name
            for name in (*fit.loaded, *fit.misfits)
            if wanted[name].shape[:1] in sizes and (id(wanted[name]) in tables or self._spec.target.size)
        }
        fix = f"start them afresh with transfer.skip: {sorted(rows)}, or use data with the same vocabulary"
        for name in sorted(rows.intersection(fit.misfits)):
            raise CheckpointError(
                field=FIELD,
                problem=f"the vocabulary doesn't match: '{name}' has {len(given[name])} entries there and "
                f"{len(wanted[name])} here",
                fix=fix,
            )
        for name, text in self._spec.tokenizers.items():
            theirs = source.tokenizers.get(name)
            if rows and theirs is not None and json.loads(theirs)["model"] != json.loads(text)["model"]:
                raise CheckpointError(
                    field=FIELD,
                    problem=f"the vocabulary of '{name}' doesn't match: it is as large there as here, but "
                    "holds other tokens",
                    fix=fix,
                )


def _check_meaning(spec: DataSpec, theirs: Meaning, ours: Meaning, loaded: Mapping[str, Tensor]) -> None:
    """Refuse weights that have learned other columns, users or items than this run's in the same places."""
    for item in spec.inputs:
        if item.name not in theirs or theirs[item.name] == ours.get(item.name):
            continue
        if item.dtype == "int64":
            reading = [name for name, value in loaded.items() if value.shape[:1] == (item.size,)]
        else:
            reading = [
                n for n, value in loaded.items() if value.ndim > 1 and value.shape[1] == item.shape[0]
            ][:1]
        if reading:
            raise CheckpointError(
                field=FIELD,
                problem=f"the input '{item.name}' means something else there: its features or ids are others "
                "or in another order",
                value=listing(theirs[item.name]),
                allowed=listing(ours.get(item.name, [])),
                fix=f"start what reads it afresh with transfer.skip: {reading}, or use data with the same "
                "columns, users and items",
            )


def _hold(part: nn.Module, given: Any) -> None:
    """Keep a frozen normalization in evaluation mode, so that its running statistics stay."""
    part.training = False


def _role(role: str | None, task: Task) -> str:
    roles = list(task.roles())
    trained = list(dict.fromkeys(phase.role for phase in task.phases()))
    if role is None:
        role = "model" if "model" in roles else trained[0] if len(trained) == 1 else None
    if role not in roles:
        raise CapabilityError(
            field="transfer.role",
            problem="the task has several modules: say which one" if role is None else "no such module",
            value=role,
            allowed=", ".join(roles),
            fix=did_you_mean(role or "", roles),
        )
    return role


def _loadable(module: nn.Module) -> dict[str, Tensor]:
    """Return parameters, under all their names, and the statistics of normalization layers."""
    found: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    for prefix, part in module.named_modules():
        own = dict(part.named_buffers(recurse=False))
        if "running_mean" in own:
            found |= {f"{prefix}.{name}" if prefix else name: value for name, value in own.items()}
    return found


def _renamed(tensors: Mapping[str, Tensor], rename: Mapping[str, str]) -> dict[str, Tensor]:
    names = {name: name for name in tensors}
    for pattern, replacement in rename.items():
        if not any(re.search(pattern, name) for name in names.values()):
            raise CapabilityError(
                field="transfer.rename",
                problem="the expression matches no tensor of init_from",
                value=pattern,
                allowed=listing(list(names.values())),
            )
        names = {old: re.sub(pattern, replacement, name) for old, name in names.items()}
    twice = sorted(name for name, times in Counter(names.values()).items() if times > 1)
    if twice:
        raise CapabilityError(
            field="transfer.rename",
            problem=f"several tensors of init_from would be called {listing(twice)}",
            value=dict(rename),
        )
    return {names[old]: value for old, value in tensors.items()}


def _check_fit(fit: _Fit, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], path: Path) -> None:
    shapes = [f"{name} ({_shape(given[name])} there, {_shape(wanted[name])} here)" for name in fit.misfits]
    wrong = [
        f"{what}: {listing(names)}"
        for what, names in (
            ("of another shape", shapes),
            ("missing there", fit.missing),
            ("unexpected", fit.unexpected),
        )
        if names
    ]
    if wrong:
        raise CheckpointError(
            field=FIELD,
            problem=f"the tensors of {path} don't fit the model; {'; '.join(wrong)}",
            fix=_prefix_hint(fit.missing, fit.unexpected)
            or "rename them with transfer.rename, leave them fresh with transfer.skip, or leave those of the "
            "file out with transfer.ignore",
        )
    if not fit.loaded:
        raise CheckpointError(
            field=FIELD,
            problem="no tensor would be loaded",
            value=str(path),
            fix="skip less, or leave init_from out",
        )


def _prefix_hint(missing: Sequence[str], unexpected: Sequence[str]) -> str:
    """Return the prefix whose change would make most of the names agree, as a `rename`; else nothing."""
    hints: Counter[str] = Counter()
    for ours in missing:
        for theirs in unexpected:
            if theirs.endswith(f".{ours}"):
                hints[f"{{'^{re.escape(theirs.removesuffix(ours))}': ''}}"] += 1
            elif ours.endswith(f".{theirs}"):
                hints[f"{{'^': '{ours.removesuffix(theirs)}'}}"] += 1
    if not hints:
        return ""
    hint, times = hints.most_common(1)[0]
    return f"did you mean transfer.rename: {hint}?" if 2 * times >= len(missing) else ""


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "scalar"
