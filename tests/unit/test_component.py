from __future__ import annotations

import sys
from pathlib import Path

import pytest

from fmdist import component
from fmdist.component import Kind, add_plugin_folder, find, kinds, load, missing, require
from fmdist.errors import DependencyMissing, UsageError

SOURCE = '"""A toy of one line."""\n\nVALUE = 1\n\n\nclass Config:\n    """Settings."""\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(component, "_plugin_folders", [])
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "toy_model.py").write_text(SOURCE)
    (tmp_path / "models" / "helper.py").write_text("def build() -> None: ...\n")
    (tmp_path / "models" / "extra_model.py").write_text(
        '"""Needs two things.\n\nMore words."""\n\nREQUIRES: tuple[str, ...] = ("vision", "no-such-thing")\n'
        "import no_such_thing\n\n\nclass Config: ...\n"
    )
    return tmp_path


@pytest.mark.parametrize("group", component.GROUPS)
def test_shipped_kinds_are_found_without_importing_them(group: str) -> None:
    found = kinds(group)
    assert found
    assert list(found) == sorted(found)
    for name, kind in found.items():
        assert (kind.name, kind.group) == (name, group)
        assert kind.module == f"{component.GROUPS[group]}.{name}"
        assert kind.summary.endswith(".")


def test_a_plugin_folder_adds_kinds(folder: Path) -> None:
    assert "toy_model" not in kinds("models")
    add_plugin_folder(folder)
    add_plugin_folder(folder)
    assert kinds("models")["toy_model"].summary == "A toy of one line."
    assert kinds("models")["extra_model"].requires == ("vision", "no-such-thing")
    assert "helper" not in kinds("models")
    assert "toy_model" not in kinds("tasks")


def test_loading_a_plugin_imports_it_once(folder: Path) -> None:
    add_plugin_folder(folder)
    config = load(find("models", "toy_model"))
    assert config.__name__ == "Config"
    assert config.__module__ == "fmdist_plugins.models.toy_model"
    assert load(find("models", "toy_model")) is config


def test_a_plugin_that_fails_leaves_no_half_module(folder: Path) -> None:
    (folder / "models" / "broken.py").write_text("class Config: ...\n\n1 / 0\n")
    add_plugin_folder(folder)
    with pytest.raises(
        UsageError, match=r"broken\.py can't be imported \(ZeroDivisionError: .*\), got 'broken'"
    ):
        load(find("models", "broken"))
    assert "fmdist_plugins.models.broken" not in sys.modules


@pytest.mark.parametrize(("made", "said"), [(False, "no such plug-in folder"), (True, "no plug-in groups")])
def test_folders_without_plugins_are_refused(tmp_path: Path, made: bool, said: str) -> None:
    other = tmp_path / "other"
    if made:
        other.mkdir()
    with pytest.raises(UsageError, match=said):
        add_plugin_folder(other)


def test_an_unknown_kind_names_the_closest(folder: Path) -> None:
    add_plugin_folder(folder)
    with pytest.raises(UsageError, match="Did you mean 'toy_model'") as caught:
        find("models", "toymodel")
    assert "toy_model" in caught.value.problems[0].allowed.split(", ")


def test_missing_extras_are_named(folder: Path) -> None:
    add_plugin_folder(folder)
    with pytest.raises(DependencyMissing, match="models kind 'extra_model' needs the extra 'no-such-thing'"):
        load(find("models", "extra_model"))
    assert missing("no-such-thing") == ["no-such-thing"]
    assert missing("pytest") == []
    with pytest.raises(DependencyMissing, match=r"fmdist\[no-such-thing\]"):
        require("no-such-thing", needed_by="this test")


def test_a_kind_of_a_package_is_imported_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "toy_package_of_a_test.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    config = load(Kind("toy", "models", "toy_package_of_a_test", "", ()))
    assert config.__module__ == "toy_package_of_a_test"
