"""The command line: one file a subcommand, imported when it is called, so that ``--help`` is quick.

Exit codes: 0 done, 2 the user's input, 3 nothing feasible, 130 interrupted. A user's mistake is one paragraph; a
traceback means a defect.
"""

from __future__ import annotations

import logging
import sys
from typing import Annotated

import typer

from search.cli.commands import Commands

app = typer.Typer(
    name="paretomerge",
    cls=Commands,
    help="Searches for Pareto-optimal merges of fine-tuned models.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(show: bool) -> None:
    if show:
        from search import __version__

        print(f"paretomerge {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of the program itself."""


def main() -> None:
    """Entry point of ``paretomerge``."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: list[str]) -> int:
    """Run one command line, and turn its end into an exit code."""
    handler = _ToStandardError(logging.WARNING)
    logging.getLogger("paretomerge").addHandler(handler)
    try:
        # in standalone mode typer shows its own usage errors and ends with their code; ours come through as they are
        app(args=arguments, prog_name="paretomerge", standalone_mode=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        print("\ninterrupted; what was scored is stored, and the same command goes on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:
        return _explain(error)
    finally:
        logging.getLogger("paretomerge").removeHandler(handler)
    return 0


class _ToStandardError(logging.Handler):
    """What the packages log for people (which code is about to run, what was left out) on standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        from search.report.terminal import visible

        print(visible(record.getMessage()), file=sys.stderr, flush=True)


def _explain(error: Exception) -> int:
    """A user's mistake as one paragraph; anything else goes on as a traceback."""
    from search.errors import Interrupted, NothingFeasible, user_errors
    from search.report.terminal import visible

    if isinstance(error, Interrupted):
        return 130
    if isinstance(error, user_errors()):
        print(visible(f"error: {error}"), file=sys.stderr)
        return 3 if isinstance(error, NothingFeasible) else 2
    raise error
