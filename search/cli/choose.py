"""``paretomerge choose``."""

from __future__ import annotations

from typing import Annotated

import typer

from search.cli.options import (
    AtLeastOption,
    ConfidenceOption,
    JsonOption,
    MaximizeOption,
    MixOption,
    RunArgument,
)


def choose(
    run: RunArgument,
    mix: MixOption = None,
    at_least: AtLeastOption = None,
    maximize: MaximizeOption = None,
    confidence: ConfidenceOption = 0.9,
    knee: Annotated[bool, typer.Option("--knee", help="The largest smallest retention; the default.")] = False,
    keep_closed: Annotated[
        bool, typer.Option("--keep-closed", help="Do not look at the holdout: print selection scores only.")
    ] = False,
    json: JsonOption = False,
) -> None:
    """Choose a merge for another mix of skills, with no new search: then look at its holdout, and write that down.

    Exit codes: 0 chosen, 2 wrong input, 3 no finalist keeps the bounds.
    """
    from rich.console import Console

    from search.choice import Wish
    from search.choice import choose as decide
    from search.errors import SearchError
    from search.report.choice import choice_data, opening_lines, print_choice
    from search.report.console import print_json
    from search.report.terminal import forgiving, visible
    from search.results import Results
    from search.run import Run

    if knee and (mix is not None or maximize is not None):
        raise SearchError("expected --knee, or --mix, or --maximize; found more than one of them")
    wish = Wish.parse(mix, at_least or [], maximize, confidence)
    results = Results.load(run)
    id = decide(results, wish)
    console = Console(file=forgiving())
    if not json:
        print_choice(results, id, wish.rule(), console)
    keep_closed = keep_closed or results.is_first
    before = None if keep_closed else id in results.scores["holdout"]
    if not keep_closed:
        if not before and not json:
            console.print("opening its holdout: the models are loaded, and the candidate is scored on it")
        Run.reopen(run).open_holdout(id, wish.rule())
        results = Results.load(run)
    if json:
        print_json(choice_data(results, id, wish.rule()))
        return
    if not keep_closed:
        print_choice(results, id, wish.rule(), console, split="holdout")
    for line in opening_lines(results, id, before):
        console.print(visible(line), markup=False, highlight=False)
