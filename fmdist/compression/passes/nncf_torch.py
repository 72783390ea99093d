"""Fake quantizers in a torch module, by NNCF's torch backend, and the module's export with them.

While a module is traced, NNCF's quantizers write themselves as FakeQuantize for OpenVINO, or as pairs of
QuantizeLinear and DequantizeLinear for ONNX. So nothing has to be stripped first: `nncf.strip` makes the same
of them and needs torchao, which has no other use here.

Source: NNCF, github.com/openvinotoolkit/nncf (3.4).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fmdist.compression.export import export_onnx, export_openvino
from fmdist.compression.openvino_files import save_openvino
from fmdist.compression.passes.layers import run_hooked
from fmdist.compression.passes.nncf_calls import quiet_nncf
from fmdist.compression.passes.onnx_folding import fold
from fmdist.contracts import ExportSpec
from fmdist.deployment.runtime import load_openvino
from fmdist.training.optim import spare_decay

_MOVING = ("Reshape", "Squeeze", "Unsqueeze", "Transpose")
"""What changes no number."""


class Whole(nn.Module):
    """A chain of layers as one layer: the quantizers that NNCF adds to a chain would become links of it.

    Its input has a name, since NNCF quantizes none of ``*inputs``.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """Return what the chain does."""
        output: Tensor = self.net(x)
        return output


def with_quantizers(
    module: nn.Module, samples: Sequence[tuple[Tensor, ...]], preset: str, ignored: Sequence[str]
) -> nn.Module:
    """Return a copy with fake quantizers, whose ranges are parameters, set by calibration samples.

    Args:
        module: in evaluation mode, on the CPU.
        samples: its inputs, for batches of one.
        preset: ``performance`` or ``mixed``.
        ignored: names of layers to leave in float.

    Raises:
        Exception: of many kinds, NNCF's own and torch's, if the module can't be traced.
    """
    load_openvino()
    import nncf

    _without_compiler()
    whole = Whole(module) if isinstance(module, nn.Sequential) else module
    prefix = "net." if whole is not module else ""
    nodes = [_node(f"{prefix}{name}") for name in ignored]
    with quiet_nncf():
        quantized: nn.Module = nncf.quantize(
            whole,
            nncf.Dataset(samples),
            subset_size=len(samples),
            preset=nncf.QuantizationPreset(preset),
            ignored_scope=nncf.IgnoredScope(patterns=nodes, validate=False),
            advanced_parameters=_advanced(),
        )
    _remove_from_integers(quantized, samples[0])
    for _, quantizer in quantizers(quantized):
        _keep_names(quantizer)
        if max(quantizer.scale_shape) == 1:
            # Of one output channel: NNCF would write a scale per channel, along the inputs.
            quantizer._scale_shape = (1,)
        for value in quantizer.parameters():
            spare_decay(value)  # a range that shrinks by itself clips
        low = getattr(quantizer, "input_low", None)
        if low is not None and not bool(low.any()):
            # What ReLU gives begins at zero: moved off it, ONNX Runtime would not find ReLU in the range.
            low.requires_grad_(False)
    return quantized


def quantizers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield NNCF's quantizers, each with the path of the layer that it belongs to."""
    from nncf.torch.function_hook.hook_storage import decode_hook_name
    from nncf.torch.function_hook.wrapper import get_hook_storage
    from nncf.torch.quantization.layers import BaseQuantizer

    for name, hook in get_hook_storage(module).named_hooks():
        if isinstance(hook, BaseQuantizer):
            path = ".".join(decode_hook_name(name)[1].split("/")[:-2])
            yield path.removeprefix("net.") if isinstance(module, Whole) else path, hook


def unused_in_training(module: nn.Module, example: tuple[Tensor, ...]) -> list[str]:
    """Return the layers whose quantizers a forward in evaluation mode meets and one in training doesn't."""
    met: list[set[str]] = []
    for training in (True, False):
        tried = copy.deepcopy(module).train(training)
        found: set[str] = set()
        handles = [
            quantizer.register_forward_hook(_noting(found, f"{position} {name}"))
            for position, (name, quantizer) in enumerate(quantizers(tried))
        ]
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            tried(*example)
        for handle in handles:
            handle.remove()
        met.append(found)
    return sorted({name.split(" ", 1)[1] for name in met[1] - met[0]})


@torch.no_grad()
def clip_weights(module: nn.Module, example: tuple[Tensor, ...]) -> None:
    """Clip weights to the ranges of their quantizers, after which the module answers as before.

    What training has moved below a range is rounded to -127 by the module, and by NNCF's exports to -128.
    Once it is clipped, both round it alike.
    """
    met: dict[int, dict[Any, Tensor]] = {}

    def note(quantizer: Any, inputs: tuple[Any, ...]) -> None:
        if quantizer.narrow_range:
            met.setdefault(inputs[0].data_ptr(), {})[quantizer] = inputs[0]

    run_hooked(
        module, example, [quantizer.register_forward_pre_hook(note) for _, quantizer in quantizers(module)]
    )
    for users in met.values():
        # What two round, each in a range of its own, has to stay for the wider one.
        if len(users) == 1:
            ((quantizer, weight),) = users.items()
            limit = quantizer.scale.abs()
            weight.copy_(weight.clamp(-limit, limit))


def write_openvino(spec: ExportSpec, file: Path) -> None:
    """Write a module with quantizers as INT8 IR: weights are stored as integers, activations quantized.

    Raises:
        CompressionError: if OpenVINO can't convert the module.
    """
    openvino = load_openvino()
    from openvino._offline_transformations import compress_quantize_weights_transformation

    draft = file.with_name(f"{file.stem}.draft.xml")
    with _sizes_uncounted():
        export_openvino(spec, draft)
    model = openvino.Core().read_model(str(draft))
    compress_quantize_weights_transformation(model)
    _quantize_before_extremes(model)
    save_openvino(model, file, draft)
    del model  # it maps the draft's weights
    for path in (draft, draft.with_suffix(".bin")):
        path.unlink()


def write_onnx(spec: ExportSpec, file: Path) -> None:
    """Write a module with quantizers as ONNX: integers and a DequantizeLinear for each weight.

    Raises:
        CompressionError: if torch can't export the module.
    """
    import onnx
    from nncf.torch.quantization.layers import QuantizerExportMode

    module = copy.deepcopy(spec.module)
    for _, quantizer in quantizers(module):
        set_mode: Any = quantizer.set_export_mode
        set_mode(QuantizerExportMode.ONNX_QUANTIZE_DEQUANTIZE_PAIRS)
    draft = file.with_name(f"{file.stem}.draft.onnx")
    # The other exporter doesn't know NNCF's quantizers.
    with _sizes_uncounted():
        export_onnx(replace(spec, module=module, onnx_route="torchscript"), draft)
    model = onnx.load(str(draft))
    fold(model.graph)
    onnx.save(model, str(file))
    draft.unlink()


@contextmanager
def _sizes_uncounted() -> Iterator[None]:
    """Have NNCF count calls in a trace as it does without one.

    It knows an operator by its place among those of one name in a module. In a trace, sizes are tensors,
    whose arithmetic would be counted too: quantizers would act elsewhere.
    """
    from nncf.torch.function_hook.hook_executor_mode import FunctionHookMode

    counted = FunctionHookMode.__torch_function__

    def uncounted(mode: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if torch._C._get_tracing_state() is not None and _is_of_sizes(func, args):
            return func(*args, **(kwargs or {}))
        return counted(mode, func, types, args, kwargs)

    FunctionHookMode.__torch_function__ = uncounted
    try:
        yield
    finally:
        FunctionHookMode.__torch_function__ = counted


def _is_of_sizes(func: Any, args: Sequence[Any]) -> bool:
    """Return whether a method of a tensor would be one of an int, were nothing traced."""
    tensors = [value for value in args if isinstance(value, Tensor)]
    method = getattr(func, "__qualname__", "").partition(".")[0] in ("Tensor", "TensorBase")
    return method and bool(tensors) and all(v.ndim == 0 and v.dtype == torch.int64 for v in tensors)


def _quantize_before_extremes(model: Any) -> None:
    """Quantize what a maximum or minimum is taken of, instead of what comes of it: the same numbers.

    OpenVINO's CPU plugin (2026.4) makes one node of a ReduceMax and the quantizer that follows, which answers
    wrongly where its output is INT8: by 0.1 of the RMS, and 0 for any ReduceMin of negative numbers. What has
    several readers isn't merged.
    """
    from openvino import opset13

    for node in model.get_ordered_ops():
        if node.get_type_name() != "FakeQuantize":
            continue
        ranges = [value.get_node().data for value in node.input_values()[1:]]
        if any(value.size > 1 for value in ranges):
            continue
        source = node.input_value(0)
        while source.get_node().get_type_name() in _MOVING and len(source.get_target_inputs()) == 1:
            source = source.get_node().input_value(0)
        extreme = source.get_node()
        if extreme.get_type_name() in ("ReduceMax", "ReduceMin") and len(source.get_target_inputs()) == 1:
            scalars = [opset13.constant(value.reshape(())) for value in ranges]
            earlier = opset13.fake_quantize(extreme.input_value(0), *scalars, node.get_levels())
            earlier.set_friendly_name(node.get_friendly_name())
            extreme.input(0).replace_source_output(earlier.output(0))
            node.output(0).replace(node.input_value(0))


def _remove_from_integers(module: nn.Module, example: tuple[Tensor, ...]) -> None:
    """Remove the quantizers of identifiers and positions, which NNCF takes for numbers."""
    from nncf.torch.function_hook.wrapper import get_hook_storage
    from nncf.torch.quantization.layers import BaseQuantizer

    storage = get_hook_storage(module)
    integers: set[nn.Module] = set()

    def note(quantizer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if isinstance(inputs[0], Tensor) and not inputs[0].is_floating_point():
            integers.add(quantizer)

    hooks = [(name, hook) for name, hook in storage.named_hooks() if isinstance(hook, BaseQuantizer)]
    handles = [hook.register_forward_pre_hook(note) for _, hook in hooks]
    run_hooked(module, example, handles)
    for name, hook in hooks:
        if hook in integers:
            storage.delete_hook(name)


def _keep_names(quantizer: nn.Module) -> None:
    """Have state dicts name a quantizer's parameters as the module does.

    NNCF renames some, after which safetensors can't tell that quantizers share them.
    """
    from nncf.torch.quantization import layers

    renaming = (layers.StorageRedirectingStateDictHook, layers.StorageRedirectingLoadStateDictHook)
    for hooks in (quantizer._state_dict_hooks, quantizer._load_state_dict_pre_hooks):
        for key, hook in list(hooks.items()):
            if isinstance(getattr(hook, "hook", hook), renaming):
                del hooks[key]


def _noting(found: set[str], name: str) -> Callable[..., None]:
    return lambda *_: found.add(name)


def _node(name: str) -> str:
    """Return the pattern of NNCF's names of what a layer computes."""
    return rf"^{re.escape(name.replace('.', '/'))}/[^/]+/\d+$"


def _advanced() -> Any:
    import nncf
    from nncf.quantization.advanced_parameters import AdvancedSmoothQuantParameters, QuantizationParameters

    return nncf.AdvancedQuantizationParameters(
        # Training does this, and better.
        disable_bias_correction=True,
        # ONNX Runtime computes in float where activations have a scale per channel.
        activations_quantization_params=QuantizationParameters(per_channel=False),
        # See `fmdist.compression.passes.quantize`.
        smooth_quant_alphas=AdvancedSmoothQuantParameters(convolution=-1, matmul=-1),
    )


def _without_compiler() -> None:
    """Let NNCF's quantizers on a CPU compute by torch's operators.

    By default the first one compiles an extension, for more than a minute, and raises if that takes longer
    than one; where there is no compiler it takes this way anyhow. Trained with and without it weights would
    differ in their last bits, so that what one machine began another couldn't finish the same.
    """
    from nncf.torch.quantization import quantize_functions
    from nncf.torch.quantization.reference import torch_executor

    class Functions:
        Quantize_forward = staticmethod(torch_executor.forward)
        Quantize_backward = staticmethod(torch_executor.backward)

    quantize_functions.QuantizedFunctionsCPU._loaded_namespace = Functions
