"""``paretomerge check``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.cli.options import ConfigArgument, JsonOption, SetOption


def check(
    config: ConfigArgument,
    set: SetOption = None,
    live: Annotated[
        bool | None,
        typer.Option(
            "--live/--no-live",
            help="Load the base, to prepare evaluators as a run does. By default only where it is small.",
        ),
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where run directories lie.")] = Path("runs"),
    json: JsonOption = False,
) -> None:
    """Check a config, its models, its data and this machine, without starting anything.

    All errors come at once, each with its line and column; then warnings and notes. Exit code 2 where there is an
    error.
    """
    import sys
    from json import dumps
    from shutil import get_terminal_size

    from rich.console import Console

    from search.checks.course import check_config
    from search.checks.shown import facts, paragraphs, table
    from search.report.plain_data import finite
    from search.report.terminal import forgiving, visible

    checked = check_config(config, set or [], runs=runs, live=live)
    if json:
        print(dumps(finite(facts(checked)), indent=2, allow_nan=False))
    else:
        width = get_terminal_size().columns if sys.stderr.isatty() else None
        text = "\n\n".join(paragraphs(checked, width))
        if set:
            text += f"\n(with {', '.join('--set ' + each for each in set)})" if text else ""
        if text:
            print(visible(text), file=sys.stderr)
        if not checked.errors:
            out = forgiving()
            if text and sys.stderr.isatty() and sys.stdout.isatty():
                print(file=out)
            print(f"{visible(str(config))}: good", file=out)
            Console(file=out).print(table(checked))
    if checked.errors:
        raise typer.Exit(2)
