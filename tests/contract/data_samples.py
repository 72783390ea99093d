"""A tiny data set of every kind, written in its published format; returns the recipe's ``data`` mapping."""

from __future__ import annotations

import csv
import gzip
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.contract import id_samples, language_samples, pair_samples, text_samples

Images = NDArray[np.uint8]


def digits(folder: Path) -> dict[str, Any]:
    return {}


def mnist(folder: Path) -> dict[str, Any]:
    """The published files, as they are downloaded."""
    return _idx(folder, folder)


def fashion_mnist(folder: Path) -> dict[str, Any]:
    """torchvision's layout."""
    return _idx(folder, folder / "FashionMNIST" / "raw")


def cifar10(folder: Path) -> dict[str, Any]:
    write_cifar_pickles(folder / "cifar-10-batches-py")
    return {"root": str(folder)}


def image_folder(folder: Path) -> dict[str, Any]:
    """Files of several sizes and formats."""
    random = np.random.default_rng(4)
    for name, light in (("cat", 60), ("dog", 160)):
        (folder / name).mkdir(parents=True)
        for number in range(20):
            size = (12, 10 + number % 3, 3)
            pixels = random.integers(light, light + 80, size, dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.{'jpg' if number % 2 else 'png'}")
    return {"root": str(folder), "image_size": 8}


def table(folder: Path) -> dict[str, Any]:
    random = np.random.default_rng(5)
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["age", "city", "income", "buys"])
        for _ in range(80):
            age, city = random.uniform(18, 80), random.choice(["Bonn", "Kiel", ""])
            writer.writerow([f"{age:.3f}", city, random.integers(1000, 5000), "yes" if age > 40 else "no"])
    return {"path": str(folder / "table.csv"), "target": "buys"}


def columns(folder: Path, kind: str) -> dict[str, Any]:
    """A table with two columns to predict."""
    random = np.random.default_rng(6)
    with (folder / "columns.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["a", "b", "sum", "product"])
        for a, b in random.normal(size=(80, 2)):
            found = (a + b, a * b)
            writer.writerow([a, b, *(found if kind == "value" else (int(value > 0) for value in found))])
    path = str(folder / "columns.csv")
    return {"kind": "table", "path": path, "target": ["sum", "product"], "target_kind": kind}


SAMPLES: dict[str, Callable[[Path], dict[str, Any]]] = {
    **{
        function.__name__: function
        for function in (digits, mnist, fashion_mnist, cifar10, image_folder, table)
    },
    **text_samples.SAMPLES,
    **language_samples.SAMPLES,
    **pair_samples.SAMPLES,
    **id_samples.SAMPLES,
}
"""Kind -> a function that writes its sample."""


VARIANTS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "digits_plain": lambda folder: {"kind": "digits", "normalize": False},
    "labels": lambda folder: columns(folder, "labels"),
    "values": lambda folder: columns(folder, "value"),
    **id_samples.VARIANTS,
}
"""Further data sets: name -> a function that writes it and returns the ``data`` mapping with its kind."""


def write_idx(path: Path, array: Images) -> None:
    """Write an IDX file, gzipped if the name ends in ``.gz``."""
    shape = b"".join(size.to_bytes(4, "big") for size in array.shape)
    content = bytes([0, 0, 8, array.ndim]) + shape + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def write_mnist(folder: Path, labels: dict[str, list[int]], seed: int = 1) -> None:
    """Write random 28 x 28 images with these labels under ``train`` and ``t10k``."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for part, values in labels.items():
        images = random.integers(0, 256, (len(values), 28, 28), dtype=np.uint8)
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte", np.array(values, np.uint8))


def write_cifar_pickles(folder: Path) -> None:
    """Write the layout for Python: protocol 2, byte images and a list of labels."""
    folder.mkdir(parents=True)
    for name, images, labels in _cifar_batches():
        with (folder / name).open("wb") as file:
            pickle.dump({"data": images, "labels": labels.tolist()}, file, protocol=2)


def write_cifar_binary(folder: Path) -> None:
    """Write the binary layout: one byte of label, 3,072 of pixels."""
    folder.mkdir(parents=True)
    for name, images, labels in _cifar_batches():
        (folder / f"{name}.bin").write_bytes(np.concatenate([labels[:, None], images], axis=1).tobytes())


def _cifar_batches() -> list[tuple[str, Images, Images]]:
    random = np.random.default_rng(3)
    names = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
    labels = np.arange(20, dtype=np.uint8) % 10
    return [(name, random.integers(0, 256, (20, 3072), dtype=np.uint8), labels) for name in names]


def _idx(root: Path, folder: Path) -> dict[str, Any]:
    write_mnist(folder, {"train": [*range(10)] * 6, "t10k": [*range(10)] * 2})
    return {"root": str(root)}
