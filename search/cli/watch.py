"""``paretomerge watch``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from search.cli.options import JsonOption, RunArgument

if TYPE_CHECKING:
    from rich.console import Console

    from search.watching import Look, Watcher

PATIENCE = 10.0
"""Seconds that a database which cannot be read at first is tried again for."""


def watch(
    run: RunArgument,
    interval: Annotated[float, typer.Option("--interval", metavar="S", help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="One look, then end.")] = False,
    json: JsonOption = False,
) -> None:
    """Watch a search from another shell: its front, what is under way, what failed, how long it may still take.

    Reads the run's database alone and never writes to it; Ctrl-C ends the watching only, the end of the run as well.

    An interrupted run is waited for. Without a terminal: a line per change.
    """
    from rich.console import Console

    from search.errors import SearchError
    from search.report.terminal import forgiving
    from search.watching import Watcher

    if not 0.1 <= interval <= 3600.0:
        raise SearchError(f"--interval {interval:g}: expected seconds between 0.1 and 3600")
    watcher = Watcher(run)
    console = Console(file=forgiving())
    try:
        with _EndedBySignal():
            if json:
                _print_data(watcher, interval, once)
            elif once:
                _print_picture(watcher, _checked(watcher.look()), console)
            elif console.is_terminal and not console.is_dumb_terminal:
                _show(watcher, interval, console)
            else:
                _print_lines(watcher, interval, console)
    except KeyboardInterrupt:
        pass  # what stands on the terminal stays; the run goes on


def _show(watcher: Watcher, interval: float, console: Console) -> None:
    """The picture, in place; the last one stays when it ends."""
    from rich.live import Live

    from search.report.live import Picture

    look = _first(watcher, interval)
    try:
        with Live(Picture(watcher.name, look), console=console, screen=True, auto_refresh=False) as live:
            live.refresh()
            while not _is_over(look):
                _sleep(interval)
                look = watcher.look()
                live.update(Picture(watcher.name, look), refresh=True)
    finally:
        _print_picture(watcher, look, console)


def _print_lines(watcher: Watcher, interval: float, console: Console) -> None:
    """A line per change, and the whole picture at the end."""
    import time

    from search.report.live import one_line

    look, said = _first(watcher, interval), None
    while True:
        if (key := _key(look)) != said:
            said = key
            line = one_line(watcher.name, look, time.time())
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        if _is_over(look):
            break
        _sleep(interval)
        look = watcher.look()
    _print_picture(watcher, look, console)


def _print_data(watcher: Watcher, interval: float, once: bool) -> None:
    """One JSON object a line, whenever something has changed."""
    import json
    import time

    from search.report.live_data import look_data
    from search.report.plain_data import finite

    said = None
    look = _checked(watcher.look()) if once else _first(watcher, interval)
    while True:
        if (key := _key(look)) != said:
            said = key
            print(json.dumps(finite(look_data(watcher.name, look, time.time())), allow_nan=False), flush=True)
        if once or _is_over(look):
            return
        _sleep(interval)
        look = watcher.look()


def _print_picture(watcher: Watcher, look: Look, console: Console) -> None:
    from search.report.live import Picture

    console.print(Picture(watcher.name, look))


def _first(watcher: Watcher, interval: float) -> Look:
    """The first look; a database that cannot be read is tried again for a while.

    Raises:
        SearchError: it still cannot be read.
    """
    import time

    until = time.monotonic() + PATIENCE
    look = watcher.look()
    while look.trouble and time.monotonic() < until:
        _sleep(min(interval, 1.0))
        look = watcher.look()
    return _checked(look)


def _checked(look: Look) -> Look:
    """Raises:
    SearchError: nothing could be read, now or before.
    """
    from search.errors import SearchError

    if look.trouble and look.course is None:
        raise SearchError(look.trouble)
    return look


def _key(look: Look) -> tuple[object, ...]:
    """What is another one after a change."""
    return look.state, look.course and (look.course.at, look.course.told), look.trouble


def _is_over(look: Look) -> bool:
    return look.state == "finished" and not look.trouble


def _sleep(seconds: float) -> None:
    import time

    time.sleep(seconds)


class _EndedBySignal:
    """SIGTERM ends as Ctrl-C does: the terminal is left as it was found."""

    def __enter__(self) -> None:
        import signal

        self._before = signal.signal(signal.SIGTERM, self._on_signal)

    def __exit__(self, *_: object) -> None:
        import signal

        signal.signal(signal.SIGTERM, self._before)

    @staticmethod
    def _on_signal(number: int, frame: object) -> None:
        raise KeyboardInterrupt
