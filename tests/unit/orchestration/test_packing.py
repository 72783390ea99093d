from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

import fmdist
from fmdist.errors import UsageError
from fmdist.orchestration import packing
from fmdist.recipe import reader


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/fmdist/jobs"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    folder = tmp_path / "mine/recipes/small"
    folder.mkdir(parents=True)
    (tmp_path / "mine/base.yaml").write_text("seed: 1\n")
    (folder / "it's x.yaml").write_text("extends: ../../base.yaml\n")
    return folder / "it's x.yaml"


def names(packed: packing.Packed) -> list[str]:
    with zipfile.ZipFile(packed.archive) as archive:
        assert archive.testzip() is None
        return archive.namelist()


def others(packed: packing.Packed) -> list[str]:
    return [name for name in names(packed) if not name.startswith("fmdist")]


def files(recipe: Path) -> list[Path]:
    base = reader.extended(recipe)
    return [recipe] if base is None else [recipe, recipe.parent / base]


def test_the_recipe_finds_what_it_extends_by_the_same_path(recipe: Path, tmp_path: Path) -> None:
    packed = packing.pack(files(recipe), [])
    assert others(packed) == ["recipe/base.yaml", "recipe/recipes/small/it's x.yaml"]
    with zipfile.ZipFile(packed.archive) as archive:
        archive.extractall(tmp_path / "there")
    assert reader.read(tmp_path / "there" / packed.recipe).values == {"seed": 1}


def test_the_package_is_packed_from_a_checkout_whole_and_clean(recipe: Path) -> None:
    packed = packing.pack(files(recipe), [])
    assert packed.package == "this checkout's, packed"
    found = set(names(packed))
    ours = Path(fmdist.__file__).parent
    assert {f"fmdist/{file.relative_to(ours).as_posix()}" for file in ours.rglob("*.py")} <= found
    assert {"fmdist/py.typed", "fmdist/__main__.py"} <= found
    assert any(name.endswith(".dist-info/METADATA") for name in found)
    assert not [name for name in found if "__pycache__" in name or name.endswith(".pyc")]
    with zipfile.ZipFile(packed.archive) as archive:
        assert packed.size_bytes == sum(entry.file_size for entry in archive.infolist())
    assert packed.files == len(found)


def test_an_installed_package_stays_here(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fmdist, "__file__", str(tmp_path / "site-packages/fmdist/__init__.py"))
    packed = packing.pack(files(recipe), [])
    assert "installed on the cluster" in packed.package
    assert names(packed) == others(packed)


def test_of_a_plugin_folder_only_its_kinds_are_packed(recipe: Path, tmp_path: Path) -> None:
    for name in (
        "models/one.py",
        "models/words.txt",
        "data/two.py",
        ".git/config",
        "runs/x/run.json",
        ".env",
    ):
        (tmp_path / "plug" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "plug" / name).write_text("x")
    for name in ("models/__pycache__/one.pyc", "models/.secret/key", "data/.env", "models/old.pyc"):
        (tmp_path / "plug" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "plug" / name).write_text("x")
    packed = packing.pack([recipe], [tmp_path / "plug", tmp_path / "plug"])
    assert packed.plugins == ("plugins/0", "plugins/1")
    assert [name for name in others(packed) if name.startswith("plugins/0")] == [
        "plugins/0/data/two.py",
        "plugins/0/models/one.py",
        "plugins/0/models/words.txt",
    ]


def test_the_same_content_is_the_same_archive_and_is_kept(recipe: Path, cache: Path) -> None:
    first, again = packing.pack(files(recipe), []), packing.pack(files(recipe), [])
    assert first == again
    assert [file.name for file in cache.iterdir()] == [first.archive.name]
    assert packing.kept(first.archive.name) == first.archive
    assert packing.kept("../../" + first.archive.name) == first.archive
    assert packing.kept("") is None
    recipe.write_text("seed: 2\n")
    assert packing.pack([recipe], []).archive != first.archive


def test_old_archives_go(recipe: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MAX_KEPT", 2)
    for seed in range(4):
        recipe.write_text(f"seed: {seed}\n")
        last = packing.pack([recipe], [])
    assert len(list(cache.iterdir())) == 2
    assert last.archive.is_file()


def test_too_much_is_refused_before_it_is_read(recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "plug/data").mkdir(parents=True)
    with (tmp_path / "plug/data/big.bin").open("wb") as file:
        file.truncate(packing.MAX_BYTES + 1)
    with pytest.raises(UsageError, match=r"big\.bin: too much .* got '10\d MB'; allowed: 100 MB"):
        packing.pack([recipe], [tmp_path / "plug"])


def test_the_command_line_is_a_module_too(tmp_path: Path) -> None:
    import subprocess

    done = subprocess.run(
        [sys.executable, "-m", "fmdist", "validate", "nowhere.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: nowhere.yaml: no such recipe file\n"
