"""What the models of form ``pair`` ask of the data."""

from __future__ import annotations

from fmdist.contracts import DataSpec, InputSpec
from fmdist.errors import CapabilityError


def pair_inputs(spec: DataSpec, kind: str) -> tuple[InputSpec, InputSpec]:
    """Return the two inputs: source ids (B, S), and the ids written so far (B, T).

    Raises:
        CapabilityError: if the data isn't pairs of texts.
    """
    if len(spec.inputs) != 2 or any(item.dtype != "int64" or item.shape != (None,) for item in spec.inputs):
        raise CapabilityError(
            field="model.kind",
            problem=f"'{kind}' reads pairs of texts and the data gives something else",
            value=[item.name for item in spec.inputs],
            fix="use data.kind 'parallel_text'",
        )
    return spec.inputs[0], spec.inputs[1]
