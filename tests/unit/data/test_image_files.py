from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from PIL import Image

from fmdist.contracts import Draw
from fmdist.data import image_folder
from fmdist.data.image_files import FileValues, decode_image
from fmdist.data.inputs import read_inputs
from fmdist.data.preprocess import ImagePreprocess
from fmdist.errors import DataError

GREY = ImagePreprocess((1, 4, 6), "L")
COLOUR = ImagePreprocess((3, 4, 6), "RGB")


def noise(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_folder(root: Path, classes: tuple[str, ...] = ("cat", "dog"), count: int = 10) -> None:
    for seed, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(count):
            pixels = noise(8, 8, 3, seed=1000 * seed + number)
            Image.fromarray(pixels).save(root / name / f"{number}.png")


def config(root: Path, **fields: Any) -> image_folder.Config:
    return image_folder.Config.model_validate({"root": str(root), "image_size": 8} | fields)


def test_an_image_of_the_right_size_is_not_touched(tmp_path: Path) -> None:
    pixels = noise(4, 6, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(decode_image(tmp_path / "a.png", COLOUR), pixels.transpose(2, 0, 1))


def test_modes_are_converted(tmp_path: Path) -> None:
    Image.fromarray(noise(4, 6)).save(tmp_path / "grey.png")
    assert decode_image(tmp_path / "grey.png", COLOUR).shape == (3, 4, 6)
    palette = Image.fromarray(noise(4, 6, 3)).convert("P")
    palette.save(tmp_path / "palette.png", transparency=bytes(range(256)))
    assert decode_image(tmp_path / "palette.png", GREY).shape == (1, 4, 6)


def test_the_cameras_orientation_is_applied(tmp_path: Path) -> None:
    pixels = noise(6, 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown rotated by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(decode_image(tmp_path / "a.png", GREY)[0], np.rot90(pixels, -1))


@pytest.mark.parametrize("resize", ["crop", "stretch"])
def test_another_size_is_resized_if_set(resize: Literal["crop", "stretch"], tmp_path: Path) -> None:
    dark_sides = np.zeros((8, 24), np.uint8)
    dark_sides[:, 5:19] = 200
    Image.fromarray(dark_sides).save(tmp_path / "a.png")
    image = decode_image(tmp_path / "a.png", ImagePreprocess((1, 4, 6), "L", resize))
    assert image.shape == (1, 4, 6)
    assert (image.min() == 200) == (resize == "crop"), "the crop is the bright centre"


def test_another_size_is_refused_otherwise(tmp_path: Path) -> None:
    Image.fromarray(noise(5, 6)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"a\.png: .*wrong shape, got '5 x 6'; allowed: 4 x 6"):
        read_inputs([tmp_path / "a.png"], [], GREY)


def test_deeper_pixels_are_refused_rather_than_clipped(tmp_path: Path) -> None:
    Image.fromarray(noise(4, 6).astype(np.uint16) * 257).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="more than 8 bits"):
        decode_image(tmp_path / "a.png", GREY)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n torn"])
def test_unreadable_images_are_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.png: not a readable image"):
        read_inputs([tmp_path / "a.png"], [], GREY)


def test_a_truncated_image_is_unreadable(tmp_path: Path) -> None:
    Image.fromarray(noise(64, 64, 3)).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="not a readable image"):
        decode_image(tmp_path / "a.jpg", ImagePreprocess((3, 64, 64), "RGB"))


def test_inputs_are_named_by_their_path(tmp_path: Path) -> None:
    for name in "ab":
        Image.fromarray(noise(4, 6, seed=ord(name))).save(tmp_path / f"{name}.png")
    paths = [tmp_path / "b.png", tmp_path / "a.png"]
    names, raw = read_inputs(paths, [], GREY)
    assert names == [str(path) for path in paths]
    assert np.array_equal(raw[0, 0], noise(4, 6, seed=ord("b")))


@pytest.mark.parametrize(("name", "problem"), [("none.png", "no such file"), (".", "a directory")])
def test_inputs_that_are_no_files_are_refused(name: str, problem: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=problem):
        read_inputs([tmp_path / name], [], GREY)


def test_no_inputs_are_refused() -> None:
    with pytest.raises(DataError, match="no input files"):
        read_inputs([], [], GREY)


def test_caching_changes_nothing_but_memory(tmp_path: Path) -> None:
    write_folder(tmp_path)
    cached, lazy = config(tmp_path).build(0), config(tmp_path, cache=False).build(0)
    assert isinstance(config(tmp_path, cache_mb=0).read().values, FileValues)
    assert cached.record == lazy.record
    assert cached.preprocess == lazy.preprocess
    draw = Draw(0, np.arange(len(cached.train)))
    mine, theirs = cached.train.__getitems__(draw), lazy.train.__getitems__(draw)
    assert all(bool((mine[name] == theirs[name]).all()) for name in mine)


def test_unreadable_files_are_quarantined(tmp_path: Path) -> None:
    write_folder(tmp_path / "set")
    (tmp_path / "set" / "cat" / "0.png").write_bytes(b"torn")
    file = tmp_path / "quarantine.jsonl"
    lenient = {"max_bad_share": 0.1}
    assert config(tmp_path / "set", clean=lenient).build(0, file).record["quarantined"] == 1
    assert "cat/0.png" in file.read_text()
    assert "not a readable image" in file.read_text()
    with pytest.raises(DataError, match="1 of 20 records are bad"):
        config(tmp_path / "set").build(0)


def test_all_files_unreadable(tmp_path: Path) -> None:
    write_folder(tmp_path, count=2)
    for path in tmp_path.rglob("*.png"):
        path.write_bytes(b"torn")
    with pytest.raises(DataError, match="4 of 4 records are bad"):
        config(tmp_path).build(0)


def test_folders_that_are_already_split(tmp_path: Path) -> None:
    for part, count in (("train", 10), ("val", 3), ("test", 4)):
        write_folder(tmp_path / part, count=count)
    data = config(tmp_path, clean={"duplicates": "keep"}).build(0)
    assert data.record["sizes"] == {"train": 20, "validation": 6, "test": 8}
    assert data.spec.target.names == ("cat", "dog")
    assert all("/test/" in source for source in data.test.sources)


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    write_folder(tmp_path, classes=("plane", "train"))
    (tmp_path / "train" / "more").mkdir()
    Image.fromarray(noise(8, 8, 3, seed=99)).save(tmp_path / "train" / "more" / "x.png")
    raw = config(tmp_path).read()
    assert raw.target.names == ("plane", "train")
    assert len(raw.values) == 21


def test_sizes_modes_and_other_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_folder(tmp_path)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / ".hidden.png").write_bytes(b"")
    data = config(tmp_path, image_size=[4, 6], mode="L").build(0)
    assert data.spec.inputs[0].shape == (1, 4, 6)
    assert "1 file(s) of another kind are ignored" in caplog.text


def test_folders_that_are_no_class_are_left_out(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "notes").mkdir()
    assert config(tmp_path, leave_out=["notes"]).build(0).spec.target.names == ("cat", "dog")


def test_a_class_without_images_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "fish").mkdir()
    with pytest.raises(DataError, match=r"fish: a class folder without files of the right kind"):
        config(tmp_path).build(0)


@pytest.mark.parametrize("classes", [(), ("cat",)])
def test_fewer_than_two_classes_are_refused(classes: tuple[str, ...], tmp_path: Path) -> None:
    write_folder(tmp_path, classes=classes)
    with pytest.raises(DataError, match="fewer than two class folders"):
        config(tmp_path).build(0)


def test_parts_of_different_classes_are_refused(tmp_path: Path) -> None:
    write_folder(tmp_path / "train")
    write_folder(tmp_path / "test", classes=("cat", "dogs"))
    with pytest.raises(DataError, match=r"a class of the other parts has no folder here, got \['dog'\]"):
        config(tmp_path).build(0)


@pytest.mark.parametrize("size", [0, [8], [8, 8, 8], "8", 8.0])
def test_image_sizes_that_are_none(size: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="image_size"):
        config(tmp_path, image_size=size)
