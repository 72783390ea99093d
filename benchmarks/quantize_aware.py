"""What quantization-aware training gives back of what quantization after training takes.

Run with ``make bench`` or ``python -m benchmarks.quantize_aware``; takes some 6 minutes on 2 cores. The
network is MobileNetV1 (Howard et al. 2017, arXiv:1704.04861) made small, on scikit-learn's digits. Trained
from the usual initialization it loses nothing in INT8. What breaks such networks is that the channels of a
layer have very different ranges while their activations share one scale (Nagel et al. 2019,
arXiv:1906.04721), so its BatchNorm scales start log-normal instead of at 1: that is the case built here, and
training keeps the spread. Per seed it is trained once, by plain torch, and compressed by `quantize` (for
OpenVINO the best of its whole grid on validation data, without accuracy control, which would give layers back
to float) and by `quantize_aware`. A seed decides the split, the weights and every draw.

The bar is about the runtimes where quantization after training loses at least `LOST`. In OpenVINO it loses
little here: NNCF gives the activations before depthwise convolutions a scale for each channel there.
"""

from __future__ import annotations

import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

import fmdist
from benchmarks.harness import conclude
from fmdist import storage

SEEDS = range(3)
LOST = 0.02
"""What quantization after training must lose, mean over the seeds, for this to be a test of anything."""
SPREAD = 1.5
"""Standard deviation of the logarithm of BatchNorm's initial scales."""
WIDTHS = (16, 32, 32, 64, 64)
TRAIN, VALIDATION = 900, 270
EPOCHS, BATCH, LR = 40, 64, 5e-3
QUICK = {"samples": 10, "max_seconds": 1.0, "torch_compile": False, "memory": False}
WAYS: Mapping[str, Mapping[str, Any]] = {
    "quantize": {"accuracy_control": False},
    "quantize_aware": {"finetune": {"epochs": 20, "lr": LR}},
}


class SmallMobileNet(nn.Sequential):
    """Four depthwise-separable blocks; images (B, 1, 8, 8) to logits (B, 10)."""

    def __init__(self) -> None:
        layers: list[nn.Module] = [*self._normalized(nn.Conv2d(1, WIDTHS[0], 3, padding=1, bias=False))]
        for number, (inputs, outputs) in enumerate(pairwise(WIDTHS)):
            stride = 2 if number % 2 else 1
            depthwise = nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False)
            layers += self._normalized(depthwise)
            layers += self._normalized(nn.Conv2d(inputs, outputs, 1, bias=False))
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], 10))
        for part in self.modules():
            if isinstance(part, nn.BatchNorm2d):
                nn.init.normal_(part.weight, std=SPREAD)
                part.weight.data.exp_()

    @staticmethod
    def _normalized(layer: nn.Conv2d) -> Sequence[nn.Module]:
        return layer, nn.BatchNorm2d(layer.out_channels), nn.ReLU()


def data(seed: int) -> fmdist.Arrays:
    """Return the digits, standardized, split by ``seed``."""
    digits = load_digits()
    images = (digits.images / 16).astype("float32")[:, None]
    images = (images - images.mean()) / images.std()
    order = np.random.default_rng(seed).permutation(len(images))
    train, validation, test = np.split(order, [TRAIN, TRAIN + VALIDATION])
    return fmdist.Arrays(
        train=(images[train], digits.target[train]),
        validation=(images[validation], digits.target[validation]),
        test=(images[test], digits.target[test]),
    )


def trained(seed: int, images: torch.Tensor, targets: torch.Tensor) -> nn.Module:
    """Return the network after a plain loop of torch."""
    torch.manual_seed(seed)
    net = SmallMobileNet()
    steps = EPOCHS * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(net.parameters(), lr=LR, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, steps)
    for step in range(steps):
        rows = np.random.default_rng((seed, step)).choice(len(images), BATCH)
        loss = nn.functional.cross_entropy(net(images[rows]), targets[rows])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return net.eval()


def one(seed: int, folder: Path) -> dict[str, Any]:
    """Train one seed and compress it both ways; return its figures."""
    arrays = data(seed)
    net = trained(seed, torch.from_numpy(arrays.train[0]), torch.from_numpy(arrays.train[1]))
    found: dict[str, Any] = {"seed": seed}
    for kind, settings in WAYS.items():
        began = time.perf_counter()
        artifact = fmdist.compress(
            net,
            arrays,
            passes={kind: settings},
            max_drop=1.0,  # What is lost is measured, not limited.
            settings={"benchmark": QUICK},
            output=folder / kind,
        )
        manifest = storage.read_json(artifact / storage.MANIFEST)
        int8 = {
            f"{row['runtime']} {row['precision']}": row
            for row in manifest["results"]
            if row["variant"] == "int8"
        }
        found[kind] = {
            "seconds": time.perf_counter() - began,
            "skipped": manifest["passes"][-1]["skipped"],
            "accuracy": {way: row["value"] for way, row in int8.items()},
            "executed": {way: row["executed"] for way, row in int8.items()},
        }
        found["float"] = manifest["results"][0]["value"]
        found["test_size"] = manifest["evaluation"]["test_size"]
    return found


def recovered(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return per runtime and precision the means over the seeds, and the share that training gave back."""
    table = {}
    for way in runs[0]["quantize"]["accuracy"]:
        before = statistics.fmean(run["float"] for run in runs)
        after, aware = (statistics.fmean(run[kind]["accuracy"][way] for run in runs) for kind in WAYS)
        lost = before - after
        table[way] = {
            "float": before,
            "quantize": after,
            "quantize_aware": aware,
            "lost": lost,
            "recovered": (aware - after) / lost if lost > 0 else None,
        }
    return table


def main() -> int:
    """Measure, write results/quantize_aware.json, return 1 if a bar is missed."""
    logging.basicConfig(level=logging.WARNING)
    runs = []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as name:
            runs.append(one(seed, Path(name)))
        accuracies = {kind: runs[-1][kind]["accuracy"] for kind in WAYS}
        sys.stdout.write(f"seed {seed}: float {runs[-1]['float']:.4f} {accuracies}\n")
        sys.stdout.flush()
    table = recovered(runs)
    fragile = [row for row in table.values() if row["lost"] >= LOST]
    bars = {
        "quantization after training loses at least 0.02 in a runtime": bool(fragile),
        "training recovers at least half of it there": bool(fragile)
        and all(row["recovered"] >= 0.5 for row in fragile),
    }
    for way, row in table.items():
        sys.stdout.write(f"{way:<24} {'  '.join(f'{key} {value}' for key, value in row.items())}\n")
    return conclude("quantize_aware", bars, {"table": table, "runs": runs})


if __name__ == "__main__":
    sys.exit(main())
