"""What every model kind promises; a new file in `fmdist/models` is tested here as soon as it exists."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.nn import functional

from fmdist import component
from fmdist.contracts import DataSpec, InputSpec, TargetSpec
from fmdist.errors import CapabilityError, CheckpointError
from fmdist.models.base import ModelConfig
from fmdist.training.checkpoint import load_weights

OUTPUTS = 4
TOLERANCE = 1e-5


def spec_of(*shapes: tuple[int, ...]) -> DataSpec:
    names = ("image", "row") if len(shapes[0]) == 3 else ("row", "image")
    inputs = tuple(InputSpec(name, shape) for name, shape in zip(names, shapes, strict=False))
    return DataSpec(inputs, TargetSpec("class", tuple("abcd")), size=8, counts=(2, 2, 2, 2))


LONGEST = 12
TEXT = DataSpec(
    (InputSpec("tokens", (None,), "int64", size=50, longest=LONGEST),),
    TargetSpec("class", tuple("abcd")),
    size=8,
    counts=(2, 2, 2, 2),
)
SPECS = {
    "grey": spec_of((1, 28, 28)),
    "colour": spec_of((3, 32, 32)),
    "table": spec_of((7,)),
    "text": TEXT,
}


def config_of(kind: str) -> ModelConfig:
    made: ModelConfig = component.load(component.find("models", kind)).model_validate({})
    return made


def build(kind: str, spec: DataSpec, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return config_of(kind).build(spec, OUTPUTS)


ALL = sorted(component.kinds("models"))
KINDS = [kind for kind in ALL if config_of(kind).form == "outputs"]
"""Those from inputs to (B, outputs); `tests.contract.test_families` has promises of all forms."""


def accepted() -> Iterator[tuple[str, str]]:
    """Yield every kind with the sorts of data that it takes."""
    for kind in KINDS:
        for name, spec in SPECS.items():
            try:
                config_of(kind).build(spec, OUTPUTS)
            except CapabilityError:
                continue
            yield kind, name


CASES = list(accepted())
LARGE = 2_000_000
"""Parameters from which a kind's tests take seconds."""
SIZES = {
    case: sum(p.numel() for p in config_of(case[0]).build(SPECS[case[1]], OUTPUTS).parameters())
    for case in CASES
}
each_case = pytest.mark.parametrize(
    ("kind", "data"),
    [pytest.param(*case, marks=[pytest.mark.slow] if SIZES[case] > LARGE else []) for case in CASES],
)


def inputs(data: str, batch: int, seed: int = 1) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    values = []
    for item in SPECS[data].inputs:
        shape = [LONGEST if size is None else size for size in item.shape]
        if item.dtype == "int64":
            values.append(torch.randint(4, item.size, (batch, *shape), generator=generator))
        else:
            values.append(torch.randn(batch, *shape, generator=generator))
    return tuple(values)


def trained(kind: str, data: str) -> nn.Module:
    """Return a model whose normalization has seen data, in evaluation mode."""
    model = build(kind, SPECS[data])
    with torch.no_grad():
        for step in range(3):
            model(*inputs(data, 8, seed=10 + step))
    return model.eval()


def test_every_kind_takes_some_data() -> None:
    assert sorted({kind for kind, _ in CASES}) == KINDS


@pytest.mark.parametrize("kind", ALL)
def test_config_survives_the_recipe(kind: str) -> None:
    config = config_of(kind)
    written = json.loads(json.dumps(config.to_recipe()))
    assert written.pop("kind") == kind
    assert type(config).model_validate_json(json.dumps(written)) == config


@each_case
@pytest.mark.parametrize("batch", [2, 5])
def test_forward_gives_outputs_per_sample(kind: str, data: str, batch: int) -> None:
    outputs = build(kind, SPECS[data])(*inputs(data, batch))
    assert outputs.shape == (batch, OUTPUTS)
    assert outputs.dtype == torch.float32
    assert torch.isfinite(outputs).all()


@each_case
def test_every_parameter_gets_a_gradient(kind: str, data: str) -> None:
    model = build(kind, SPECS[data])
    target = torch.arange(16) % OUTPUTS
    functional.cross_entropy(model(*inputs(data, 16)), target).backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name


@each_case
def test_the_seed_decides_the_weights(kind: str, data: str) -> None:
    first, again, other = (build(kind, SPECS[data], seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


@each_case
def test_weights_survive_a_file(kind: str, data: str, tmp_path: Path) -> None:
    model, other = trained(kind, data), build(kind, SPECS[data], seed=9).eval()
    save_model(model, str(tmp_path / "model.safetensors"))
    with torch.no_grad():
        expected = model(*inputs(data, 4))
        assert not torch.equal(other(*inputs(data, 4)), expected)
        load_weights(other, tmp_path / "model.safetensors")
        assert torch.equal(other(*inputs(data, 4)), expected)


@each_case
def test_weights_of_another_size_are_refused(kind: str, data: str, tmp_path: Path) -> None:
    wider = config_of(kind).build(SPECS[data], OUTPUTS + 1)
    save_model(wider, str(tmp_path / "model.safetensors"))
    with pytest.raises(CheckpointError, match="don't fit the model of the recipe"):
        load_weights(build(kind, SPECS[data]), tmp_path / "model.safetensors")


@each_case
def test_a_sample_does_not_depend_on_its_neighbours(kind: str, data: str) -> None:
    model = trained(kind, data)
    with torch.no_grad():
        together = model(*inputs(data, 6))
        alone = torch.cat([model(*(value[row : row + 1] for value in inputs(data, 6))) for row in range(6)])
    assert (together - alone).abs().max() <= TOLERANCE * together.abs().max()


@each_case
def test_exports_say_how_they_are_called(kind: str, data: str) -> None:
    export = config_of(kind).export(build(kind, SPECS[data]), SPECS[data].inputs)
    (small, length), (large, other) = export.probes
    assert small != large
    assert (length != other) == (data == "text")
    assert set(export.dynamic_axes) == {*export.input_names, *export.output_names}
    for probe in export.probes:
        example, again = export.example_inputs(*probe), export.example_inputs(*probe)
        assert len(example) == len(export.input_names)
        assert all(torch.equal(a, b) for a, b in zip(example, again, strict=True))
        assert len(export.module(*example)) == probe[0]


@pytest.mark.parametrize("kind", KINDS)
def test_two_inputs_are_refused(kind: str) -> None:
    spec = SPECS[next(data for name, data in CASES if name == kind)]
    two = replace(spec, inputs=(*spec.inputs, InputSpec("other", (7,))))
    with pytest.raises(CapabilityError, match="takes one input and the data has several"):
        config_of(kind).build(two, OUTPUTS)


READERS_OF_IMAGES = sorted({kind for kind, data in CASES if data in ("grey", "colour")})


@pytest.mark.parametrize("kind", [kind for kind in READERS_OF_IMAGES if (kind, "table") not in CASES])
def test_image_models_say_what_they_read(kind: str) -> None:
    with pytest.raises(CapabilityError, match="reads images"):
        config_of(kind).build(SPECS["table"], OUTPUTS)
    with pytest.raises(CapabilityError, match=r"reads numbers|token"):
        config_of(kind).build(SPECS["text"], OUTPUTS)


@pytest.mark.parametrize("kind", sorted({kind for kind, data in CASES if data == "text"}))
def test_sequence_models_say_what_they_read(kind: str) -> None:
    with pytest.raises(CapabilityError, match="token"):
        config_of(kind).build(SPECS["grey"], OUTPUTS)
