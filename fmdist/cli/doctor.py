"""``fmdist doctor``: what this machine has, what is missing and how to get it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from fmdist.cli.frame import Answer, FilePath, verb

CORE = ("torch", "accelerate", "pydantic", "click", "numpy", "safetensors", "torchmetrics", "scikit-learn")
"""Distributions without which nothing trains."""

MIN_FREE_BYTES = 1_000_000_000


@verb()
@click.option(
    "--runs",
    "folder",
    type=FilePath,
    default=Path("runs"),
    show_default=True,
    metavar="DIR",
    help="Where runs would be written.",
)
def doctor(folder: Path) -> Answer:
    """Show what this machine has and what is missing.

    Versions, devices, compilers, extras, memory and disk; exits 1 if the core is broken.
    """
    import platform
    import shutil

    from fmdist import console
    from fmdist.environment import hardware

    broken: list[str] = []
    facts = {
        "system": {"platform": platform.platform(), "python": platform.python_version(), **hardware()},
        "versions": _versions(broken),
        "devices": _devices(broken),
        "compilers": {name: shutil.which(name) for name in ("g++", "ninja")},
        "extras": _extras(),
        "memory": _memory(),
        "disk": _disk(folder, broken),
        "broken": broken,
    }
    return Answer(facts, _text(facts, console.human_bytes), exit_code=1 if broken else 0)


def _versions(broken: list[str]) -> dict[str, str | None]:
    from importlib.metadata import PackageNotFoundError, version

    found: dict[str, str | None] = {}
    for name in ("fmdist", *CORE):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
            broken.append(f"{name} is not installed: pip install --upgrade fmdist")
    return found


def _devices(broken: list[str]) -> list[dict[str, Any]]:
    try:
        import torch
    except Exception as error:  # A broken binary raises anything; saying so is this command's purpose.
        broken.append(f"torch can't be imported ({type(error).__name__}: {error}): reinstall it")
        return []
    devices: list[dict[str, Any]] = [{"device": "cpu", "name": f"{torch.get_num_threads()} threads of torch"}]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        devices.append({"device": f"cuda:{index}", "name": facts.name, "memory_bytes": facts.total_memory})
    if torch.backends.mps.is_available():
        devices.append({"device": "mps", "name": "Apple GPU"})
    return devices


def _extras() -> dict[str, dict[str, Any]]:
    from importlib.metadata import metadata

    from fmdist import component

    extras = metadata("fmdist").get_all("Provides-Extra") or []
    return {
        name: {"missing": component.missing(name), "install": f"pip install 'fmdist[{name}]'"}
        for name in extras
        if name not in ("all", "dev")
    }


def _memory() -> dict[str, int]:
    meminfo = Path("/proc/meminfo")
    if not meminfo.is_file():
        return {}
    entries = dict(line.split(":", 1) for line in meminfo.read_text(encoding="utf-8").splitlines())
    return {
        "total_bytes": int(entries["MemTotal"].split()[0]) * 1024,
        "available_bytes": int(entries["MemAvailable"].split()[0]) * 1024,
    }


def _disk(folder: Path, broken: list[str]) -> dict[str, Any]:
    """Return the free space where runs go; the folder itself may not exist yet."""
    import shutil

    place = folder.absolute()
    while not place.exists():
        place = place.parent
    writable = place.is_dir() and os.access(place, os.W_OK)
    if not writable:
        broken.append(f"{place} is not writable: choose another folder for runs with --runs")
    free_bytes = shutil.disk_usage(place).free
    if free_bytes < MIN_FREE_BYTES:
        broken.append(f"less than 1 GB is free at {place}")
    return {"runs": str(folder), "writable": writable, "free_bytes": free_bytes}


def _text(facts: dict[str, Any], size: Any) -> str:
    system, memory, disk = facts["system"], facts["memory"], facts["disk"]
    flags = " ".join(system["flags"])
    lines = [
        f"python     {system['python']} ({sys.executable})",
        f"system     {system['platform']}",
        f"cpu        {system['cpu']}, {system['cores']} cores, {flags or 'instructions unknown'}",
    ]
    if memory:
        lines.append(
            f"memory     {size(memory['available_bytes'])} available of {size(memory['total_bytes'])}"
        )
    state = "writable" if disk["writable"] else "NOT WRITABLE"
    lines.append(f"disk       {size(disk['free_bytes'])} free, {disk['runs']}/ is {state}")
    for name, path in facts["compilers"].items():
        lines.append(f"{name:<10} {path or 'not found; torch.compile and some extensions need it'}")
    for device in facts["devices"]:
        memory_text = f", {size(device['memory_bytes'])}" if "memory_bytes" in device else ""
        lines.append(f"device     {device['device']}: {device['name']}{memory_text}")
    lines += ["", "packages"]
    lines += [f"  {name:<14} {version or 'MISSING'}" for name, version in facts["versions"].items()]
    lines += ["", "extras"]
    for name, extra in facts["extras"].items():
        absent = ", ".join(extra["missing"])
        state = f"missing {absent}: {extra['install']}" if absent else "installed"
        lines.append(f"  {name:<14} {state}")
    lines += ["", *(f"BROKEN: {text}" for text in facts["broken"])] if facts["broken"] else []
    return "\n".join(lines)
