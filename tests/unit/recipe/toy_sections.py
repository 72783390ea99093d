"""A small recipe schema with a plug-in group of its own, so that these tests know no real section."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pytest
from pydantic import Field, model_validator

from fmdist import component
from fmdist.recipe.schema import ComponentConfig, Plugin, Section, SectionSpec

PLUGINS = {
    "ball": '''
        """Something round."""
        from pydantic import Field
        from fmdist.recipe.schema import ComponentConfig

        class Config(ComponentConfig):
            """A ball."""

            radius: float = Field(default=1.0, gt=0)
            """Radius, in metres."""
            colors: tuple[str, ...] = ("red", "on")
            """Its colours."""
    ''',
    "cube": '''
        """Something with corners."""
        from pathlib import Path
        from pydantic import Field
        from fmdist.recipe.schema import ComponentConfig

        class Config(ComponentConfig):
            """A cube."""

            edge: int = Field(ge=1)
            """Edge, in metres."""
            label: Path | None = None
            """File with its label."""
    ''',
    "ghost": '''
        """Needs what nobody has."""
        REQUIRES = ("no_such_distribution",)

        import no_such_distribution

        class Config: ...
    ''',
}


class Inner(Section):
    """A nested section."""

    every: int = Field(default=5, ge=1)
    """Steps between two."""


class Work(Section):
    """How the work is done."""

    epochs: int = Field(default=10, ge=1)
    """How often."""
    lr: float = Field(default=1e-3, gt=0)
    """Rate. A second sentence that explains it with `code` and: a colon."""
    mode: Literal["fast", "slow"] = "fast"
    """Which way."""
    rate: float | Literal["auto"] = "auto"
    """A number or a word."""
    verbose: bool = False
    """Whether to talk."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Anything."""
    inner: Inner = Inner()
    """The nested one."""
    extra: Inner | None = None
    """Off unless stated."""
    more: tuple[Annotated[ComponentConfig, Plugin("toys")], ...] = ()
    """Toys, one after the other."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.mode == "slow" and self.epochs > 100:
            message = "slow work takes at most 100 epochs"
            raise ValueError(message)
        return self


SECTIONS: dict[str, SectionSpec] = {
    "name": SectionSpec(str, summary="What it is called."),
    "seed": SectionSpec(Annotated[int, Field(ge=0)], default=0),
    "toy": SectionSpec(Plugin("toys"), summary="What to play with."),
    "work": SectionSpec(Work, default={}),
    "bonus": SectionSpec(Inner, default=None, summary="Something on top."),
}


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the plug-ins below ``folder`` and make their group ``toys`` known for one test."""
    monkeypatch.setitem(component.GROUPS, "toys", "fmdist.no_such_package")
    monkeypatch.setattr(component, "_plugin_folders", [])
    (folder / "toys").mkdir()
    for name, source in PLUGINS.items():
        (folder / "toys" / f"{name}.py").write_text(textwrap.dedent(source).lstrip())
    component.add_plugin_folder(folder)
