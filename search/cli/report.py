"""``paretomerge report``."""

from __future__ import annotations

from search.cli.options import RunArgument


def report(run: RunArgument) -> None:
    """Write the run's report: one HTML file that works offline."""
    from search.report.html import write_report
    from search.results import Results

    print(f"report: {write_report(Results.load(run))}")
