"""Plug-ins: ``kind: resnet`` in a recipe is the module ``fmdist/models/resnet.py``.

There is no registry and no decorator. A file in a plug-in folder is a kind if it defines ``class Config``;
everything that a listing shows (name, first docstring line, needed extras) is read from its source, so that
listing imports nothing. Out-of-tree kinds come from entry points (group ``fmdist.models`` and so on) and from
folders that the user names with ``--plugins``; a recipe alone never makes fmdist import code.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from fmdist.errors import DependencyMissing, UsageError, did_you_mean

GROUPS = {
    "models": "fmdist.models",
    "tasks": "fmdist.tasks",
    "data": "fmdist.data",
    "passes": "fmdist.compression.passes",
}
"""Plug-in group -> the package whose modules are its kinds."""

_CONFIG = re.compile(r"^class Config\b", re.MULTILINE)
_REQUIRES = re.compile(r"^REQUIRES\s*(?::[^=]*)?=\s*\(([^)]*)\)", re.MULTILINE)
_FACT = re.compile(r"^    (\w+)(?:\s*:\s*ClassVar[^=\n]*)\s*=\s*[\"']([^\"'\n]*)[\"']", re.MULTILINE)
_SUMMARY = re.compile(r'^"""(.+?)(?:"""|$)', re.MULTILINE)

_plugin_folders: list[Path] = []


@dataclass(frozen=True)
class Kind:
    """One plug-in as its source file describes it, not imported."""

    name: str
    group: str
    module: str
    """Dotted name to import, or the path of a file of a ``--plugins`` folder."""
    summary: str
    requires: tuple[str, ...]
    """Extras of fmdist (or distributions) that must be installed."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Class variables of ``Config`` that are strings, such as a model's ``form``."""


def add_plugin_folder(folder: Path) -> None:
    """Make the kinds under ``folder/models``, ``folder/tasks``, ... known to this process.

    Raises:
        UsageError: if the folder doesn't exist or holds none of the plug-in groups.
    """
    if not any((folder / group).is_dir() for group in GROUPS):
        raise UsageError(
            field="--plugins",
            problem="no such plug-in folder" if not folder.is_dir() else "the folder has no plug-in groups",
            value=str(folder),
            allowed=f"a folder with at least one of {', '.join(f'{group}/' for group in GROUPS)}",
        )
    if folder.resolve() not in _plugin_folders:
        _plugin_folders.append(folder.resolve())


def plugin_folders() -> list[Path]:
    """Return the folders that were added."""
    return list(_plugin_folders)


def kinds(group: str) -> dict[str, Kind]:
    """Return every known kind of a group, by name, in alphabetical order; imports none of them."""
    folder = Path(__file__).parent.joinpath(*GROUPS[group].split(".")[1:])
    found = [_read(path, group, f"{GROUPS[group]}.{path.stem}") for path in folder.glob("*.py")]
    for plugin_folder in _plugin_folders:
        found += [_read(path, group, str(path)) for path in (plugin_folder / group).glob("*.py")]
    for entry in importlib.metadata.entry_points(group=f"fmdist.{group}"):
        found.append(Kind(entry.name, group, entry.value, f"from the package of {entry.value}", ()))
    return {kind.name: kind for kind in sorted(filter(None, found), key=lambda kind: kind.name)}


def find(group: str, name: str) -> Kind:
    """Return the kind called ``name``.

    Raises:
        UsageError: if there is none; lists the known names.
    """
    known = kinds(group)
    if name in known:
        return known[name]
    raise UsageError(
        field=f"{group}.kind",
        problem="unknown kind",
        value=name,
        allowed=", ".join(known),
        fix=did_you_mean(name, known) or "name the folder of a plug-in of your own with --plugins",
    )


def load(kind: Kind) -> Any:
    """Import a kind and return its ``Config`` class.

    Raises:
        DependencyMissing: if an extra that its source names is not installed.
    """
    for extra in kind.requires:
        require(extra, needed_by=f"{kind.group} kind '{kind.name}'")
    module = _import_file(kind) if kind.module.endswith(".py") else importlib.import_module(kind.module)
    return module.Config


def missing(extra: str) -> list[str]:
    """Return the distributions of an extra of fmdist that are not installed."""
    from packaging.requirements import Requirement

    wanted = []
    for line in importlib.metadata.requires("fmdist") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and requirement.marker.evaluate({"extra": extra}):
            wanted.append(requirement.name)
    return [name for name in wanted or [extra] if not _installed(name)]


def require(extra: str, needed_by: str) -> None:
    """Check that an extra is installed.

    Raises:
        DependencyMissing: naming what is missing and the command that installs it.
    """
    if absent := missing(extra):
        raise DependencyMissing(
            problem=f"{needed_by} needs the extra '{extra}' ({', '.join(absent)} not installed)",
            fix=f"install it: pip install 'fmdist[{extra}]'",
        )


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _read(path: Path, group: str, module: str) -> Kind | None:
    source = path.read_text(encoding="utf-8")
    if not _CONFIG.search(source):
        return None
    requires = _REQUIRES.search(source)
    summary = _SUMMARY.search(source)
    return Kind(
        name=path.stem,
        group=group,
        module=module,
        summary=summary.group(1).strip() if summary else "",
        requires=tuple(re.findall(r"[\"']([^\"']+)[\"']", requires.group(1))) if requires else (),
        facts=dict(_FACT.findall(source)),
    )


def _import_file(kind: Kind) -> ModuleType:
    name = f"fmdist_plugins.{kind.group}.{kind.name}"
    if name in sys.modules and sys.modules[name].__file__ == kind.module:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, kind.module)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Pickle imports the packages above a module before it looks a class up there.
    for package in ("fmdist_plugins", f"fmdist_plugins.{kind.group}"):
        sys.modules.setdefault(package, ModuleType(package))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise UsageError(
            field=f"{kind.group}.kind",
            problem=f"{kind.module} can't be imported ({type(error).__name__}: {error})",
            value=kind.name,
            fix="mend the plug-in; -v shows the traceback",
        ) from error
    return module
