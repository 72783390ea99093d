"""OpenVINO models written so that the same model is always the same file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from fmdist.deployment.runtime import load_openvino

_COUNTED = re.compile(r"[A-Za-z]\w*_\d+")


def save_openvino(model: Any, file: Path, made_from: Path | None = None) -> None:
    """Write ``file`` (.xml) and its weights (.bin beside it) in the precision that the model has.

    OpenVINO names the model, and nodes that have no name of their own, by a counter of the process; here they
    are numbered by their place in the model.

    Args:
        model: is renamed.
        file: where it goes.
        made_from: a model whose names stay.
    """
    openvino = load_openvino()
    known = set()
    if made_from is not None:
        known = {node.get_friendly_name() for node in openvino.Core().read_model(str(made_from)).get_ops()}
    added = "_added" if known else ""
    model.set_friendly_name("model")
    for place, node in enumerate(model.get_ordered_ops()):
        name = node.get_friendly_name()
        if name not in known and _COUNTED.fullmatch(name):
            node.set_friendly_name(f"{node.get_type_name()}{added}_{place}")
    openvino.save_model(model, str(file), compress_to_fp16=False)
