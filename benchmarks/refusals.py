"""Which families a compression is refused for, and why: the README's table, drawn from the model kinds.

``python -m benchmarks.refusals`` prints it; a test compares it with the README, and another reproduces every
refusal.
"""

from __future__ import annotations

import sys

from fmdist import component


def refusals() -> dict[tuple[str, str], str]:
    """Return (model kind, what is refused) -> why."""
    found = {}
    for kind in component.kinds("models").values():
        config = component.load(kind)
        if config.onnx_route is None:
            found[kind.name, "ONNX"] = "the exporters don't keep its free axes"
        if config.not_quantizable is not None:
            found[kind.name, "INT8"] = config.not_quantizable
        if config.onnx_float_only is not None:
            found[kind.name, "INT8 in ONNX Runtime"] = config.onnx_float_only
    return found


def table() -> list[str]:
    """Return the lines of the README's table."""
    rows = [f"| `{kind}` | {what} | {why} |" for (kind, what), why in sorted(refusals().items())]
    return ["| model kind | refused | reason |", "|---|---|---|", *rows]


if __name__ == "__main__":
    sys.stdout.write("\n".join(table()) + "\n")
