"""``paretomerge run``."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, NoReturn

import typer

from search.cli.options import ConfigArgument, SetOption


def run(
    config: ConfigArgument,
    runs: Annotated[Path, typer.Option("--runs", metavar="DIR", help="Where run directories lie.")] = Path("runs"),
    name: Annotated[str | None, typer.Option("--name", help="The run's name; the config's if left out.")] = None,
    set: SetOption = None,
    workers: Annotated[
        int | None,
        typer.Option("--workers", metavar="N", min=1, help="So many processes, by Ray: here, or on workers.address."),
    ] = None,
    control: Annotated[
        bool, typer.Option("--control", help="Also a random search with the same budget, as one more baseline.")
    ] = False,
    display: Annotated[
        str, typer.Option("--display", metavar="KIND", help="auto, rich, plain, json or none.")
    ] = "auto",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would take, as `plan` does, and start nothing.")
    ] = False,
) -> None:
    """Search. The same command resumes; one Ctrl-C ends tidily, two at once.

    Exit codes: 0 finished, 2 wrong input, 3 nothing feasible, 130 interrupted.
    """
    from rich.console import Console

    from merging.hub_models import downloading
    from search.config import load_config
    from search.errors import Interrupted, SearchError
    from search.events import Turning
    from search.report.console import print_results
    from search.report.displays import RichDisplay, make_display
    from search.report.html import write_report
    from search.report.terminal import forgiving
    from search.results import Results
    from search.run import Run
    from search.store import DATABASE, FIRST

    kinds = ("auto", "rich", "plain", "json", "none")
    if display not in kinds:
        raise SearchError(f"--display {display}: expected one of {', '.join(kinds)}")
    set = [*(set or []), *(["search.control=true"] if control else []), *_several(workers)]
    if dry_run:
        from search.cli.plan import plan

        plan(config, set=set, runs=runs)
        return
    loaded = load_config(config, set)
    folder = runs / _checked_name(name or loaded.config.name)
    shown = make_display(display, loaded.config.search.budget, name=folder.name)  # type: ignore[arg-type]
    if isinstance(shown, Turning):
        shown.turn_to(folder)
    stop = _StopRequest()
    try:
        with stop:
            say = _nothing if display in ("json", "none") else partial(print, file=sys.stderr, flush=True)
            search = Run(loaded, folder, [shown] if shown is not None else [], say, _begin_anew)
            with downloading(say):
                chosen = search.execute(stop.requested)
    except Interrupted:
        again = " ".join(["paretomerge run", str(config), *_given(runs, name, set)])
        print(f"\nstopped; everything scored is stored. To go on:\n  {again}", file=sys.stderr)
        raise
    finally:
        if isinstance(shown, RichDisplay):
            shown.close()
    results = Results.load(folder)
    if (folder / FIRST / DATABASE).is_file():
        write_report(Results.load(folder / FIRST))
    report = write_report(results)
    if display == "json":
        return
    if chosen is None:
        print(f"{folder}: finished before; a larger search.budget would go on with it")
    if display != "none":
        print_results(results, Console(file=forgiving()))
    print(f"report: {report}")


def _several(workers: int | None) -> list[str]:
    """What --workers sets: one process needs no Ray."""
    if workers is None:
        return []
    return [f"workers.count={workers}", *(["workers.kind=ray"] if workers > 1 else [])]


def _begin_anew() -> NoReturn:
    """The same command in this process' place: it resumes."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0.0)  # a time limit's alarm outlives exec, and would end what comes
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _nothing(line: str) -> None:
    """What is said of the set-up where nobody reads it."""


class _StopRequest:
    """Ctrl-C and SIGTERM: the first asks for a tidy end after what is under way, the second ends at once."""

    def __init__(self) -> None:
        self._asked = False
        self._before: dict[int, object] = {}

    def requested(self) -> bool:
        """Whether somebody has asked to stop."""
        return self._asked

    def __enter__(self) -> _StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        print("\nstopping after what is being evaluated; once more stops at once", file=sys.stderr, flush=True)


def _checked_name(name: str) -> str:
    from merging.bounded import printable
    from search.errors import SearchError

    strange = not name.isprintable() or len(name.encode()) > 200 or any(sign in name for sign in "/\\")
    if not name or name in (".", "..") or strange:
        raise SearchError(
            f"--name {printable(name)}: expected a plain name for a folder under --runs, such as quickstart"
        )
    return name


def _given(runs: Path, name: str | None, set: list[str] | None) -> list[str]:
    """The options that the user gave, for repeating the command."""
    import shlex

    words = [] if runs == Path("runs") else ["--runs", shlex.quote(str(runs))]
    words += [] if name is None else ["--name", shlex.quote(name)]
    for each in set or []:
        words += ["--set", shlex.quote(each)]
    return words
