"""``paretomerge status``."""

from __future__ import annotations

from typing import Annotated

import typer

from search.cli.options import JsonOption, RunArgument


def status(
    run: RunArgument,
    json: JsonOption = False,
    candidates: Annotated[bool, typer.Option("--candidates", help="With --json: every candidate, too.")] = False,
) -> None:
    """Where a run stands: its front, the chosen candidate, the baselines. Works while the search is running."""
    import time

    from rich.console import Console

    from search.report.claim import claim_data
    from search.report.console import print_json, print_results
    from search.report.live import FIRST_OF_TWO
    from search.report.live_data import progress_data
    from search.report.terminal import forgiving
    from search.results import Results
    from search.store import under_way

    asked, run = run, under_way(run)
    results = Results.load(run)
    if json:
        now = time.time() if results.state == "running" else None
        facts = results.status(candidates=candidates)
        print_json({**facts, **progress_data(results.course, now), "claim": claim_data(results)})
    else:
        print_results(results, Console(file=forgiving()))
        if run != asked:
            print(FIRST_OF_TWO)
        if (run / "report.html").exists():
            print(f"report: {run / 'report.html'}")
