"""``paretomerge export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.cli.options import AtLeastOption, ConfidenceOption, MaximizeOption, MixOption, RunArgument


def export(
    run: RunArgument,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The new model folder.")],
    candidate: Annotated[int | None, typer.Option("--candidate", metavar="ID", help="Which candidate.")] = None,
    knee: Annotated[bool, typer.Option("--knee", help="The run's recommendation: its knee.")] = False,
    mix: MixOption = None,
    at_least: AtLeastOption = None,
    maximize: MaximizeOption = None,
    confidence: ConfidenceOption = 0.9,
) -> None:
    """Write a candidate as a Hugging Face model folder, the same bits that were scored."""
    from search.choice import Wish, choose
    from search.errors import SearchError
    from search.export import export_candidate
    from search.results import Results

    wished = mix is not None or maximize is not None or bool(at_least)
    if (candidate is not None) + knee + wished != 1:
        raise SearchError(
            "expected one of --candidate ID, --knee, or a wish (--mix, --at-least, --maximize); `paretomerge status "
            "RUN` lists the front"
        )
    results = Results.load(run)
    if wished:
        id = choose(results, Wish.parse(mix, at_least or [], maximize, confidence))
    else:
        id = results.knee() if candidate is None else candidate
    folder = export_candidate(results, id, out)
    print(f"exported candidate {id} of {run} to {folder}")
