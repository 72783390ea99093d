"""One self-contained HTML file that shows what a run or an artifact recorded; reads files, never models."""

from fmdist.reports.document import write

__all__ = ["write"]
