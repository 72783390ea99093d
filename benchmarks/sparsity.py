"""What zeros are worth: the CNN of ``recipes/digits_sparse.yaml`` at 80% and at 95%, over five seeds.

Run with ``make bench`` or ``python -m benchmarks.sparsity``; takes about 20 minutes on 2 cores. A seed
decides the split, the weights and every draw; its dense model is trained once and pruned to each sparsity by
the recipe's pass, on the cubic schedule (Zhu & Gupta 2017, arXiv:1710.01878) over all layers together.
Reported: loss of test accuracy, zeros in the weights as exported, as opened again and as trained on, bytes
through gzip, and the latency of the sparse model over that of the dense one, in OpenVINO and ONNX Runtime.
"""

from __future__ import annotations

import logging
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.harness import ROOT, conclude, spread
from fmdist import stages, storage
from fmdist.compression.finetune import keeping_zeros
from fmdist.contracts import Draw, Task
from fmdist.data.splits import DataSplits
from fmdist.deployment.runtime import load_openvino
from fmdist.stages.places import open_trained

SEEDS = range(5)
BARS = {0.8: 0.005, 0.95: 0.03}
"""Sparsity -> how much test accuracy may be lost on average."""
RECIPE = ROOT / "recipes" / "digits_sparse.yaml"
BATCH = 64

_WEIGHED = ("Convolution", "GroupConvolution", "MatMul")
_BETWEEN = ("Convert", "Reshape", "Transpose")


def main() -> int:
    """Measure, write results/sparsity.json, return 1 if a bar is missed."""
    logging.basicConfig(level=logging.ERROR)
    rows = []
    for seed in SEEDS:
        with tempfile.TemporaryDirectory() as name:
            for row in one(seed, Path(name)):
                rows.append(row)
                gzip, latency = (row[name]["openvino"] for name in ("gzip_ratio", "latency_ratio"))
                sys.stdout.write(
                    f"seed {seed}, {row['sparsity']:.0%}: {row['dense']:.4f} -> {row['sparse']:.4f}, "
                    f"gzip {gzip:.3f}, latency {latency:.2f}\n"
                )
                sys.stdout.flush()
    table = {f"{sparsity:.0%}": _summary(rows, sparsity) for sparsity in BARS}
    bars = {
        f"{sparsity:.0%} loses at most {allowed} on average": table[f"{sparsity:.0%}"]["drop"]["mean"]
        <= allowed
        for sparsity, allowed in BARS.items()
    } | {
        "the share is met": all(abs(row["share"] - row["sparsity"]) < 1e-3 for row in rows),
        "zeros are kept": all(len(set(row["zeros"].values())) == 1 for row in rows),
    }
    for name, columns in table.items():
        figures = "  ".join(f"{column} {values['median']:.4g}" for column, values in columns.items())
        sys.stdout.write(f"{name:<5} {figures}\n")
    return conclude("sparsity", bars, {"pass": pruning(), "table": table, "runs": rows})


def one(seed: int, folder: Path) -> list[dict[str, Any]]:
    """Train one seed's dense model and prune it to each sparsity; return their figures."""
    changed = [f"seed={seed}", "train.threads=1"]
    run = stages.train(RECIPE, output=folder / "run", overrides=changed).folder
    _, data, task = open_trained(run)
    rows = []
    for sparsity in BARS:
        # What it loses is what is measured, so nothing is refused.
        settings = {"max_drop": 1.0, "passes": [{**pruning(), "sparsity": sparsity}]}
        artifact = stages.compress(run, settings=settings, output=folder / f"{sparsity:.0%}")
        rows.append({"seed": seed, "sparsity": sparsity, **figures(artifact, data, task)})
    return rows


def pruning() -> dict[str, Any]:
    """Return the recipe's pass."""
    (found,) = [
        item
        for item in stages.load_recipe(RECIPE).plain["compress"]["passes"]
        if item["kind"] == "prune_weights"
    ]
    return dict(found)


def figures(artifact: Path, data: DataSplits, task: Task) -> dict[str, Any]:
    """Return what an artifact of sparse weights shows."""
    manifest = storage.verify(artifact)
    results = {(row["runtime"], row["variant"], row["precision"]): row for row in manifest["results"]}
    dense, sparse = results["torch", "fp32", "f32"], results["openvino", "reduced", "f32"]
    module = stages.open_module(artifact)
    zeros = {
        "pass": manifest["passes"][0]["coverage"]["torch"]["changed_parameters"],
        "openvino": zeros_in_openvino(artifact / manifest["models"]["openvino"]["reduced"]["file"])[0],
        "onnx": zeros_in_onnx(artifact / manifest["models"]["onnxruntime"]["reduced"]["file"])[0],
        "opened": zeros_in_torch(module)[0],
    }
    train_on(module, data, task)
    zeros["trained on"], weights = zeros_in_torch(module)
    pairs = {
        runtime: [results[runtime, variant, "default"] for variant in ("fp32", "reduced")]
        for runtime in ("openvino", "onnxruntime")
    }
    return {
        "dense": dense["value"],
        "sparse": sparse["value"],
        "drop": dense["value"] - sparse["value"],
        "share": zeros["pass"] / weights,
        "weights": weights,
        "zeros": zeros,
        "bytes_ratio": {name: after["bytes"] / before["bytes"] for name, (before, after) in pairs.items()},
        "gzip_bytes": {name: [row["gzip_bytes"] for row in pair] for name, pair in pairs.items()},
        "gzip_ratio": {
            name: after["gzip_bytes"] / before["gzip_bytes"] for name, (before, after) in pairs.items()
        },
        "latency_ratio": {
            name: after["latency_ms"]["median"] / before["latency_ms"]["median"]
            for name, (before, after) in pairs.items()
        },
        "test_size": manifest["evaluation"]["test_size"],
    }


def train_on(module: nn.Module, data: DataSplits, task: Task) -> None:
    """Train a module that was opened again for one epoch, as its user would, with its zeros kept."""
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    again = keeping_zeros(module.parameters())
    optimizer.register_step_post_hook(lambda *_: again())
    train = data.train.plain()
    names = [item.name for item in task.inputs]
    order = np.random.default_rng(0).permutation(len(train))
    for rows in np.array_split(order, max(1, len(order) // BATCH)):
        batch = train.__getitems__(Draw(0, rows))
        loss = nn.functional.cross_entropy(module(*[batch[name] for name in names]), batch["target"])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()


def zeros_in_torch(module: nn.Module) -> tuple[int, int]:
    """Return how many of the weights of two or more dimensions are zero, and how many there are."""
    weights = [value.detach().numpy() for value in module.parameters() if value.ndim >= 2]
    return _zeros(weights)


def zeros_in_openvino(file: Path) -> tuple[int, int]:
    """Return the same of the layers' weights in an OpenVINO IR."""
    found = []
    for node in load_openvino().Core().read_model(str(file)).get_ordered_ops():
        if node.get_type_name() not in _WEIGHED:
            continue
        for port in node.inputs():
            source = port.get_source_output().get_node()
            while source.get_type_name() in _BETWEEN:
                source = source.input_value(0).get_node()
            if source.get_type_name() == "Constant":
                found.append(np.array(source.get_data()))
    return _zeros(found)


def zeros_in_onnx(file: Path) -> tuple[int, int]:
    """Return the same of an ONNX model's weights."""
    import onnx

    graph = onnx.load(str(file)).graph
    values = {value.name: value for value in graph.initializer}
    read = [name for node in graph.node if node.op_type in ("Conv", "Gemm", "MatMul") for name in node.input]
    weights = [onnx.numpy_helper.to_array(values[name]) for name in read if name in values]
    return _zeros([value for value in weights if value.ndim >= 2])


def _zeros(weights: list[Any]) -> tuple[int, int]:
    return sum(int((value == 0).sum()) for value in weights), sum(value.size for value in weights)


def _summary(rows: list[dict[str, Any]], sparsity: float) -> dict[str, dict[str, float]]:
    chosen = [row for row in rows if row["sparsity"] == sparsity]
    columns: dict[str, list[float]] = {name: [row[name] for row in chosen] for name in ("dense", "drop")}
    for name in ("bytes_ratio", "gzip_ratio", "latency_ratio"):
        for runtime in chosen[0][name]:
            columns[f"{runtime} {name}"] = [row[name][runtime] for row in chosen]
    return {name: spread(values) | {"mean": statistics.fmean(values)} for name, values in columns.items()}


if __name__ == "__main__":
    sys.exit(main())
