"""BatchNorm folded into the convolution or linear layer before it: the same function of fewer operations.

The exporters to OpenVINO and ONNX fold it, and constants, by themselves; this does it to the torch model, for
its weights, its `torch.export` program, and those who open it. It can't be trained as before afterwards.

Source: Jacob et al. 2018 (arXiv:1712.05877), section 3.2; `torch.nn.utils.fusion`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from fmdist.compression import reshape
from fmdist.compression.finetune_config import FinetuneConfig
from fmdist.compression.passes import batchnorm
from fmdist.compression.passes import layers as found_layers
from fmdist.compression.passes.base import Reduced, TorchBench, TorchPass
from fmdist.errors import CapabilityError

TOLERANCE = 1e-4
"""Largest relative difference of the outputs that is rounding."""

log = logging.getLogger(__name__)


class Config(TorchPass):
    """Every BatchNorm whose input is one layer's output, and nothing else's."""

    order: ClassVar[int] = 40

    finetune: FinetuneConfig | None = None
    """Training afterwards; by default none, since the outputs stay the same."""

    def check(self, module: nn.Module, example: tuple[Tensor, ...], fixed: Mapping[str, str]) -> None:
        """See `TorchPass.check`."""
        found_layers.ignored(self._norms(module), self.ignore, {}, self.kind())

    def _norms(self, module: nn.Module) -> dict[str, Any]:
        norms = {name: part for name, part in module.named_modules() if isinstance(part, batchnorm.NORMS)}
        if not norms:
            raise CapabilityError(
                field=f"compress.passes.{self.kind()}",
                problem="the model has no BatchNorm that could be folded",
                fix="leave the pass out: the exporters fold constants by themselves",
            )
        return norms

    def reduce(self, bench: TorchBench) -> Reduced:
        """See `TorchPass.reduce`."""
        module = bench.served
        norms = self._norms(module)
        reasons = found_layers.ignored(norms, self.ignore, {}, self.kind())
        sources = batchnorm.sources(module, bench.example)
        with torch.no_grad():
            expected = module(*bench.example)
        folded: list[str] = []
        for name in norms:
            if name in reasons:
                continue
            source = sources.get(name)
            if source is None:
                reasons[name] = "its input is not the output of one convolution or linear layer"
            elif _fold(module, source, name, bench.example, expected):
                folded.append(name)
                log.debug("%s is folded into %s", name, source)
            else:
                reasons[name] = f"the output of {source} is used elsewhere too"
        coverage = _coverage(norms, folded, reasons)
        if folded and self.finetune is not None:
            bench.finetune(self.finetune, "folded")
        return Reduced(coverage, [{"module": name, "identity": True} for name in folded])


@torch.no_grad()
def _fold(module: nn.Module, source: str, name: str, example: tuple[Tensor, ...], expected: Tensor) -> bool:
    """Fold one BatchNorm; return False, and do nothing, if the outputs would change."""
    layer: Any = module.get_submodule(source)
    norm: Any = module.get_submodule(name)
    if isinstance(layer, nn.Linear):
        fused: Any = fuse_linear_bn_eval(layer, norm)
    else:
        fused = fuse_conv_bn_eval(layer, norm, transpose=getattr(layer, "transposed", False))
    before = layer.weight, layer.bias
    # The layer stays the same object: other roles of the task hold it too.
    layer.weight, layer.bias = _parameter(fused.weight), _parameter(fused.bias)
    reshape.replace(module, name, nn.Identity())
    found = module(*example)
    if float((found - expected).abs().max()) > TOLERANCE * float(expected.abs().max()):
        layer.weight, layer.bias = before
        reshape.replace(module, name, norm)
        return False
    return True


def _parameter(value: Any) -> nn.Parameter:
    return nn.Parameter(value.detach().clone())


def _coverage(norms: dict[str, Any], folded: list[str], reasons: dict[str, str]) -> dict[str, Any]:
    sizes = {name: sum(value.numel() for value in norm.parameters()) for name, norm in norms.items()}
    return {
        "layers": len(norms),
        "changed_layers": len(folded),
        "parameters": sum(sizes.values()),
        "changed_parameters": sum(sizes[name] for name in folded),
        "changed": [
            {"name": name, "type": type(norms[name]).__name__, "of": sizes[name], "changed": sizes[name]}
            for name in folded
        ],
        "left": [
            {
                "name": name,
                "type": type(norm).__name__,
                "shape": [getattr(norm, "num_features", 0)],
                "parameters": sizes[name],
                "reason": reasons[name],
            }
            for name, norm in norms.items()
            if name not in folded
        ],
    }
