"""``paretomerge export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.cli.options import RunArgument


def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The new model folder.")],
    candidate: Annotated[int | None, typer.Option("--candidate", metavar="ID", help="Which candidate.")] = None,
    knee: Annotated[bool, typer.Option("--knee", help="The run's recommendation: its knee.")] = False,
) -> None:
    """Write a candidate as a Hugging Face model folder, the same bits that were scored."""
    from search.errors import SearchError
    from search.export import export_candidate
    from search.results import Results

    if (candidate is None) != knee:
        raise SearchError("expected either --candidate ID or --knee; `paretomerge status RUN` lists the front")
    results = Results.load(run)
    id = results.knee() if candidate is None else candidate
    folder = export_candidate(results, id, out)
    print(f"exported candidate {id} of {run} to {folder}")
