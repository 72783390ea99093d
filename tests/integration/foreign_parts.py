"""A small network that fmdist knows nothing of, trained by a plain loop and written by other tools."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fmdist.contracts import Draw
from fmdist.data import digits
from fmdist.data.splits import DataSplits
from fmdist.deployment.runtime import load_openvino
from fmdist.models import mlp

openvino = load_openvino()

RECIPE = """\
data: {kind: digits}
task: {kind: classification}
compress:
  passes: [{kind: quantize, ranges: [mean], bias_correction: [none]}]
  max_drop: 0.05
  calibration_samples: 50
  benchmark: {samples: 10, batch_size: 16}
"""
MODEL = "model: {kind: mlp, hidden: [32]}\n"


class Net(nn.Module):
    """One convolution and one layer, over a reshape that exporters like to freeze."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.head = nn.Linear(16 * 64, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return logits (B, 10)."""
        features = torch.relu(self.conv(pixels))
        return torch.as_tensor(self.head(features.view(features.shape[0], -1)))


class Foreign(NamedTuple):
    """A folder with ``data.yaml``, ``model.yaml`` and one model in every format; nobody writes into it."""

    folder: Path
    net: Net
    splits: DataSplits
    accuracy: float
    """Of ``net`` on the test split."""
    mlp_accuracy: float
    """Of the module whose weights are in ``mlp.safetensors``."""


def train(module: nn.Module, splits: DataSplits) -> float:
    """Train on the digits and return the accuracy on the test split."""
    batch = splits.train.__getitems__(Draw(0, np.arange(len(splits.train))))
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3)
    for epoch in range(4):
        for rows in np.array_split(np.random.default_rng(epoch).permutation(len(splits.train)), 20):
            loss = nn.functional.cross_entropy(module(batch["image"][rows]), batch["target"][rows])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
    module.eval()
    test = splits.test.__getitems__(Draw(0, np.arange(len(splits.test))))
    with torch.no_grad():
        return float((module(test["image"]).argmax(1) == test["target"]).double().mean())


def write_all(folder: Path) -> Foreign:
    """Train, and write every format: ``free.*`` takes any batch, ``fixed.*`` only one sample."""
    splits = digits.Config().build(seed=0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net, weights = Net(), mlp.Config(hidden=(32,)).build(splits.spec, 10)
        accuracy, mlp_accuracy = train(net, splits), train(weights, splits)
    (folder / "data.yaml").write_text(RECIPE)
    (folder / "model.yaml").write_text(MODEL + RECIPE)
    save_file(weights.state_dict(), folder / "mlp.safetensors")
    image = torch.zeros(2, 1, 8, 8)
    axes = ({0: torch.export.Dim("batch")},)
    for name, example, shapes in (("free", image, axes), ("fixed", image[:1], None)):
        program = torch.export.export(net, (example,), dynamic_shapes=shapes)
        torch.export.save(program, folder / f"{name}.pt2")
        torch.onnx.export(
            net,
            (example,),
            str(folder / f"{name}.onnx"),
            dynamo=True,
            dynamic_shapes=shapes,
            external_data=False,
            verbose=False,
        )
        openvino.save_model(openvino.convert_model(str(folder / f"{name}.onnx")), str(folder / f"{name}.xml"))
    return Foreign(folder, net, splits, accuracy, mlp_accuracy)
