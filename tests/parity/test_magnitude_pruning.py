"""`prune_weights` cuts the weights that NNCF's magnitude pruning cuts, where NNCF covers a layer."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

BOTH = """
import copy, sys
import nncf, torch
from torch import nn
from fmdist.compression.passes import prune_weights
from tests.unit.compression.benches import bench

class Net(nn.Module):  # NNCF can't trace a bare nn.Sequential
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 16), nn.Linear(16, 10)
        )
    def forward(self, x):
        return self.body(x)

torch.manual_seed(0)
ours = Net()
theirs = nncf.prune(
    copy.deepcopy(ours), mode=nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_LOCAL, ratio=0.6,
    examples_inputs=torch.randn(2, 1, 8, 8),
)
prune_weights.Config(sparsity=0.6, scope="local", schedule="one_shot").reduce(bench(ours))
masks = {tuple(value.shape): value for name, value in theirs.state_dict().items() if "mask" in name}
weights = {tuple(layer.weight.shape): layer.weight for layer in (ours.body[0], ours.body[3], ours.body[4])}
assert masks.keys() == weights.keys(), theirs.state_dict().keys()
for shape, weight in weights.items():
    mask = masks[shape]
    other = ((weight != 0) != (mask != 0)).sum().item()
    assert other <= 1, (other, weight.numel())  # the weight on the limit
print("same")
"""


def test_nncf_cuts_the_same_weights() -> None:
    # In a process of its own: NNCF leaves a thread behind.
    done = subprocess.run([sys.executable, "-c", BOTH], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("same")
