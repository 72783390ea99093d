"""Readers of published formats, and what they say about damaged files."""

from __future__ import annotations

import gzip
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fmdist.data import cifar10, download, mnist
from fmdist.data.idx import read_idx
from fmdist.errors import DataError

LABELS = [*range(10)] * 6


def idx(array: np.ndarray[Any, Any]) -> bytes:
    return (
        bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()
    )


def images(size: int, side: int = 28) -> np.ndarray[Any, Any]:
    return np.random.default_rng(size).integers(0, 256, (size, side, side), dtype=np.uint8)


def write_mnist(folder: Path, labels: list[int] = LABELS, side: int = 28) -> None:
    for part, values in (("train", labels), ("t10k", LABELS[:20])):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images(len(values), side)))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.array(values, np.uint8)))


def cifar_batch(seed: int) -> dict[bytes, Any]:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 3072), dtype=np.uint8)
    return {b"data": pixels, b"labels": [i % 10 for i in range(20)]}


CIFAR_FILES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")


def write_cifar(folder: Path, suffix: str) -> None:
    folder.mkdir(parents=True)
    for seed, name in enumerate(CIFAR_FILES):
        batch = cifar_batch(seed)
        labels = np.array(batch[b"labels"], np.uint8)
        content = np.concatenate([labels[:, None], batch[b"data"]], axis=1).tobytes()
        (folder / f"{name}{suffix}").write_bytes(content if suffix else pickle.dumps(batch, protocol=2))


@pytest.mark.parametrize("shape", [(3,), (2, 3), (2, 3, 4), (0, 5)])
@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files_are_read(shape: tuple[int, ...], zipped: bool, tmp_path: Path) -> None:
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / ("a.gz" if zipped else "a")
    path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
    assert np.array_equal(read_idx(path), array)
    assert read_idx(path).shape == shape


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a", idx(np.arange(9, dtype=np.uint8))[:-1], "truncated"),
        ("a", idx(np.arange(9, dtype=np.uint8)) + b"x", "bytes left over"),
        ("a", b"", "not an IDX file"),
        ("a", b"\0\0\x0d\1\0\0\0\0", "unsigned bytes"),
        ("a", b"<html>", "not an IDX file"),
        ("a", b"\0\0\x08\3\0\0\0\2", "truncated"),
        ("a.gz", b"not gzip at all", "can't be read"),
        ("a.gz", gzip.compress(idx(np.arange(99, dtype=np.uint8)))[:-20], "can't be read"),
    ],
)
def test_damaged_idx_files_are_named(name: str, content: bytes, problem: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: .*{problem}"):
        read_idx(tmp_path / name)


def test_mnist_keeps_the_published_test_split(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    data = mnist.Config(root=tmp_path).build(0)
    assert np.array_equal(np.sort(data.test.raw(np.arange(20)), axis=0), np.sort(images(20)[:, None], axis=0))
    assert len(data.train) + len(data.validation) == 60


def test_mnist_with_a_label_12_names_the_row(tmp_path: Path) -> None:
    write_mnist(tmp_path, [*LABELS[:30], 12, *LABELS[31:]])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte:30: .*got 12; allowed: 0 to 9"):
        mnist.Config(root=tmp_path).build(0)


def test_mnist_images_of_the_wrong_shape_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path, side=32)
    with pytest.raises(DataError, match=r"wrong shape, got \(60, 32, 32\); allowed: \(N, 28, 28\)"):
        mnist.Config(root=tmp_path).build(0)


def test_mnist_labels_must_fit_the_images(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.zeros(59, np.uint8)))
    with pytest.raises(DataError, match=r"train-labels.*don't fit the images, got \(59,\)"):
        mnist.Config(root=tmp_path).build(0)


def test_missing_files_are_listed_with_the_way_out(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match=r"1 file.*t10k-labels-idx1-ubyte\(\.gz\).*set data.download to true"):
        mnist.Config(root=tmp_path).build(0)


def test_download_happens_only_if_asked_and_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def published(dataset: str, root: Path) -> None:
        asked.append(dataset)
        write_mnist(root)

    monkeypatch.setattr(download, "_download", published)
    with pytest.raises(DataError):
        mnist.Config(root=tmp_path).read()
    assert asked == []
    config = mnist.Config(root=tmp_path, download=True)
    assert len(config.read().values) == 80
    assert len(config.read().values) == 80
    assert asked == ["MNIST"]


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize(
    ("layout", "suffix"), [("cifar-10-batches-py", ""), ("cifar-10-batches-bin", ".bin")]
)
def test_both_layouts_of_cifar10(layout: str, suffix: str, nested: bool, tmp_path: Path) -> None:
    write_cifar(tmp_path / layout, suffix)
    raw = cifar10.Config(root=tmp_path if nested else tmp_path / layout).read()
    assert raw.published is not None
    assert raw.published.tolist() == ["train"] * 100 + ["test"] * 20
    first = raw.values.take(np.array([0, 119]))
    assert np.array_equal(first[0].ravel(), cifar_batch(0)[b"data"][0])
    assert np.array_equal(first[1].ravel(), cifar_batch(5)[b"data"][19])
    assert raw.targets[[0, 119]].tolist() == [0, 9]


def test_a_cifar10_file_may_be_missing_by_name(tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar-10-batches-bin", ".bin")
    (tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"1 file.*CIFAR10 not found: data_batch_3"):
        cifar10.Config(root=tmp_path).read()


class _Evil:
    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return (io.open, ("/tmp/never-written-by-a-pickle",))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (pickle.dumps({b"data": _Evil()}), "it names .*open, which no CIFAR-10 batch needs"),
        (pickle.dumps(cifar_batch(0))[:-100], "not a CIFAR-10 batch"),
        (b"", "EOFError"),
        (pickle.dumps([1, 2]), "AttributeError"),
        (pickle.dumps({b"data": cifar_batch(0)[b"data"]}), "KeyError: 'labels'"),
        (pickle.dumps(cifar_batch(0) | {b"labels": [0]}, protocol=2), "wrong shape or type"),
        (pickle.dumps(cifar_batch(0) | {b"labels": [0.5] * 20}, protocol=2), "wrong shape or type"),
    ],
)
def test_a_pickle_can_build_nothing_but_arrays(content: bytes, problem: str, tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar-10-batches-py", "")
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(content)
    with pytest.raises(DataError, match=f"data_batch_2: .*{problem}"):
        cifar10.Config(root=tmp_path).read()


@pytest.mark.parametrize("size", [0, 3073 * 2 - 1])
def test_a_truncated_binary_batch_is_named(size: int, tmp_path: Path) -> None:
    write_cifar(tmp_path / "cifar-10-batches-bin", ".bin")
    (tmp_path / "cifar-10-batches-bin" / "test_batch.bin").write_bytes(b"\0" * size)
    with pytest.raises(DataError, match=r"test_batch\.bin: .*truncated"):
        cifar10.Config(root=tmp_path).read()
