"""What a graph from elsewhere reads and answers, matched with what a task needs of it.

Shapes: B batch, K outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fmdist.contracts import InputSpec
from fmdist.errors import CapabilityError

OUTPUT = "output"
"""What the answer is called in an artifact."""


@dataclass(frozen=True)
class Port:
    """One input or output of a graph."""

    name: str
    dtype: str
    """As NumPy names it."""
    shape: tuple[int | None, ...] | None
    """With the batch; None in it is a free axis, and in its place a shape of which nothing is known."""

    def __str__(self) -> str:
        return f"{self.dtype} {_shown(self.shape)}"


@dataclass(frozen=True)
class Matched:
    """Which ports of a graph serve a task."""

    inputs: tuple[Port, ...]
    """In the order of the task's."""
    output: Port
    batch: int | None
    """The number of samples that the graph takes, if it takes no other."""


def match(
    file: Path, inputs: Sequence[Port], outputs: Sequence[Port], wanted: Sequence[InputSpec], size: int
) -> Matched:
    """Return which ports are the task's: by name if all names fit, else by order.

    Args:
        file: the model, for messages.
        inputs: of the graph.
        outputs: of the graph; `OUTPUT` is taken, else the first that is float32 (B, K).
        wanted: the task's inputs.
        size: K, of the task.

    Raises:
        CapabilityError: naming the port whose type or shape isn't the data's.
    """
    if len(inputs) != len(wanted):
        raise CapabilityError(
            field=str(file),
            problem=f"the model has {len(inputs)} inputs and the task gives {len(wanted)}",
            value=[port.name for port in inputs],
            allowed=", ".join(item.name for item in wanted),
        )
    by_name = {port.name: port for port in inputs}
    if by_name.keys() == {item.name for item in wanted}:
        inputs = [by_name[item.name] for item in wanted]
    for port, item in zip(inputs, wanted, strict=True):
        _check_input(file, port, item)
    fixed = {port.shape[0] for port in inputs if port.shape} - {None}
    if len(fixed) > 1:
        raise CapabilityError(
            field=str(file),
            problem="the inputs have batches of different fixed sizes",
            value=sorted(map(str, fixed)),
        )
    return Matched(tuple(inputs), _output(file, outputs, size), next(iter(fixed), None))


def _check_input(file: Path, port: Port, item: InputSpec) -> None:
    wanted = (None, *item.shape)
    fits = port.shape is None or (
        len(port.shape) == len(wanted)
        and all(have is None or have == want for have, want in zip(port.shape[1:], wanted[1:], strict=True))
    )
    if fits and port.dtype == item.dtype:
        return
    fix = "export the model for such inputs, or change the recipe's data section"
    if port.shape is not None and port.shape[1:] and None in item.shape and port.dtype == item.dtype:
        fix = "the data's rows have different lengths: export the model with that axis free (dynamic)"
    raise CapabilityError(
        field=f"{file}: input '{port.name}'",
        problem=f"it isn't what the data gives as '{item.name}'",
        value=str(port),
        allowed=f"{item.dtype} {_shown(wanted)}, the first axis free or fixed",
        fix=fix,
    )


def _output(file: Path, outputs: Sequence[Port], size: int) -> Port:
    def fits(port: Port) -> bool:
        shape = port.shape
        return port.dtype == "float32" and (shape is None or (len(shape) == 2 and shape[1] in (None, size)))

    named = [port for port in outputs if port.name == OUTPUT]
    chosen = next(iter(named or [port for port in outputs if fits(port)]), outputs[0])
    if fits(chosen):
        return chosen
    raise CapabilityError(
        field=f"{file}: output '{chosen.name}'",
        problem="it isn't what the task scores",
        value=str(chosen),
        allowed=f"float32 (any, {size}), one column for each of the data's {size} targets",
        fix="give the data that the model was trained for, its classes in the same order",
    )


def _shown(shape: Sequence[int | None] | None) -> str:
    if shape is None:
        return "of unknown shape"
    return "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
