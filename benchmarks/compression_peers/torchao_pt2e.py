"""torchao's PT2E quantization for x86, static INT8, as its tutorial calls it; the scorer compiles it."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer

from benchmarks.compression_peers.job import read
from benchmarks.compression_peers.pt2e import write_programs


def quantize(module: nn.Module, example: tuple[Tensor], samples: Iterable[Tensor]) -> Any:
    """Return the module with weights in INT8 and activations quantized by what ``samples`` show."""
    # The quantizer finds patterns by which call a node comes from, which only strict export records.
    exported = torch.export.export(copy.deepcopy(module), example, strict=True).module()
    quantizer = x86_inductor_quantizer.X86InductorQuantizer()
    quantizer.set_global(x86_inductor_quantizer.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported, quantizer)
    for sample in samples:
        prepared(sample)
    return convert_pt2e(prepared)


if __name__ == "__main__":
    write_programs(read(), quantize)
