"""``fmdist report``: one self-contained HTML file about a run or an artifact."""

from __future__ import annotations

from pathlib import Path

from fmdist.cli.evaluate import with_target
from fmdist.cli.frame import Answer, verb


@verb()
@with_target
def report(target: Path) -> Answer:
    """Write report.html from what a run or an artifact recorded."""
    from fmdist import stages

    path = stages.report(target)
    return Answer({"report": str(path)}, str(path))
