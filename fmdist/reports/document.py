"""From a folder to its report."""

from __future__ import annotations

import functools
from importlib import resources
from pathlib import Path

import jinja2

from fmdist import storage
from fmdist.errors import UsageError
from fmdist.reports import artifact, run
from fmdist.reports.layout import Page

REPORT = "report.html"


def write(path: Path) -> Path:
    """Write ``report.html`` into a run's or an artifact's folder, atomically, and return its path.

    The file needs nothing else: styles, plots (SVG) and images are inside, and it loads nothing. The same
    records give the same bytes.

    Raises:
        UsageError: if ``path`` is neither a run nor an artifact.
        CheckpointError: if a recorded file is broken.
    """
    if (path / run.RECORD).is_file():
        page = run.page(path)
    elif artifact.recognized(path):
        page = artifact.page(path)
    else:
        raise UsageError(
            field="path",
            problem="neither a run nor an artifact" if path.is_dir() else "no such directory",
            value=str(path),
            allowed=f"a folder with {run.RECORD} (a run) or an artifact's {storage.MANIFEST}",
            fix="`fmdist runs` lists the runs",
        )
    report = path / REPORT
    storage.write_stamped(report, render(page))
    return report


def render(page: Page) -> str:
    """Return the page as HTML; every text in it is escaped, only the plots are not."""
    return _template().render(page=page)


@functools.cache
def _template() -> jinja2.Template:
    source = resources.files("fmdist.reports").joinpath("template.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(source)
