"""``paretomerge report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.cli.options import RunArgument


def report(
    run: RunArgument,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="FILE.png", help="Draw the front as a small PNG instead of the page."),
    ] = None,
    candidate: Annotated[
        int | None, typer.Option("--candidate", metavar="ID", help="With --picture: the one with the star.")
    ] = None,
    dark: Annotated[bool, typer.Option("--dark", help="With --picture: for a dark page.")] = False,
) -> None:
    """Write the run's report: one HTML file that works offline. Or, with --picture, its front as a picture."""
    from search.errors import SearchError
    from search.report.terminal import visible
    from search.results import Results
    from search.store import under_way

    if picture is None and (dark or candidate is not None):
        raise SearchError(
            "--dark and --candidate are for --picture FILE.png; the report itself follows the reader's setting and "
            "shows every candidate. Add --picture, or leave them out"
        )
    results = Results.load(under_way(run))
    if picture is not None:
        from search.report.picture import write_front_picture

        print(visible(f"picture: {write_front_picture(results, picture, highlight=candidate, dark=dark)}"))
        return
    from search.report.html import write_report

    print(visible(f"report: {write_report(results)}"))
