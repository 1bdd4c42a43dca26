"""``paretomerge dashboard``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from search.cli.options import RunArgument

if TYPE_CHECKING:
    from search.dashboard.server import Dashboard


def dashboard(
    run: RunArgument,
    port: Annotated[
        int | None,
        typer.Option(
            "--port", metavar="N", min=0, max=65535, help="The first free one from 8080 on if left out; 0 is any."
        ),
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open it in a browser, where there is one.")
    ] = True,
    all_genes: Annotated[
        bool, typer.Option("--all-genes", help="Every gene, also where so many make the page slow; else their means.")
    ] = False,
) -> None:
    """Show a run in optuna-dashboard, on this machine alone.

    It follows the run while that goes on, and changes nothing in it. Ctrl-C ends it.
    """
    import sys

    from search.dashboard.package import check_installed
    from search.report.terminal import visible

    check_installed()
    from search.dashboard.mirror import Mirror
    from search.dashboard.server import ADDRESS, Dashboard

    mirror = Mirror(run, everything=all_genes, say=lambda line: print(visible(line), file=sys.stderr, flush=True))
    server = Dashboard(mirror, port)
    if mirror.parameters.thinned:
        print(f"shown are {mirror.parameters.thinned}; --all-genes shows each, slowly")
    print(f"{server.address}\nIt follows {visible(str(run))} and changes nothing in it. Ctrl-C ends it.")
    print(f"From another machine: ssh -L {server.port}:{ADDRESS}:{server.port} this-one", flush=True)
    if browser:
        _open_browser(server.address)
    _serve(server)


def _serve(server: Dashboard) -> None:
    """Until Ctrl-C, or the signal that ends a service."""
    import signal

    def end(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        server.serve()
    except KeyboardInterrupt:
        print()
    finally:
        signal.signal(signal.SIGTERM, before)


def _open_browser(address: str) -> None:
    """Where there is a screen: a browser that would take over the terminal is not wanted."""
    import os
    import sys
    import webbrowser

    if sys.platform in ("darwin", "win32") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(address)
