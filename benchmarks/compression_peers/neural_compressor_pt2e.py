"""Intel Neural Compressor's static INT8 for torch on a CPU, with its defaults (it goes through PT2E)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from neural_compressor.torch.export import export
from neural_compressor.torch.quantization import convert, get_default_static_config, prepare
from torch import Tensor, nn

from benchmarks.compression_peers.job import read
from benchmarks.compression_peers.pt2e import write_programs


def quantize(module: nn.Module, example: tuple[Tensor], samples: Iterable[Tensor]) -> Any:
    """Return the module with weights in INT8 and activations quantized by what ``samples`` show."""
    prepared = prepare(export(module, example_inputs=example), quant_config=get_default_static_config())
    for sample in samples:
        prepared(sample)
    return convert(prepared)


if __name__ == "__main__":
    write_programs(read(), quantize)
