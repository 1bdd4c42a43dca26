"""``paretomerge ls``: what there is to choose from, and which runs there are."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.cli.completing import KINDS, complete_kinds
from search.cli.options import JsonOption

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from rich.console import Console


def ls(
    kind: Annotated[
        str,
        typer.Argument(metavar="KIND", help=f"{', '.join(KINDS)}.", autocompletion=complete_kinds, show_default=False),
    ],
    folder: Annotated[
        Path | None, typer.Argument(metavar="[DIR]", help="With runs: where they lie; runs if left out.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """List methods, evaluators, optimizers, presets or runs.

    Those of installed packages too. Also metrics and words: `paretomerge explain NAME` says more of each.
    """
    from search.errors import SearchError
    from search.positions import did_you_mean

    if kind not in KINDS:
        raise SearchError(f"ls {kind}: expected one of {', '.join(KINDS)}.{did_you_mean(kind, KINDS)}")
    if folder is not None and kind != "runs":
        raise SearchError(f"ls {kind} {folder}: only `ls runs` takes a folder; leave it out")
    rows = runs(folder or Path("runs")) if kind == "runs" else _ROWS[kind]()
    if json:
        from search.report.console import print_json

        print_json(rows)
        return
    _print(kind, rows)


def methods() -> list[dict[str, Any]]:
    """Facts of every method, as ``explain`` has them; only name and error of one that cannot be loaded."""
    from merging.methods import names
    from merging.recipe import MergingError
    from search.method_facts import method_facts

    return list(_each(names(), method_facts, MergingError))


def evaluators() -> list[dict[str, Any]]:
    """Name, summary, options and metrics of every evaluator."""
    from evaluators.contract import EvaluatorError
    from evaluators.registry import names
    from search.naming import evaluator_facts

    return list(_each(names(), evaluator_facts, EvaluatorError))


def optimizers() -> list[dict[str, Any]]:
    """Name, summary and options of every optimizer."""
    from search.naming import optimizer_facts
    from search.optimizers.contract import OptimizerError
    from search.optimizers.registry import optimizers as names

    return list(_each(names(), optimizer_facts, OptimizerError))


def presets() -> list[dict[str, Any]]:
    """Name, summary and models of every preset."""
    from search.presets import PRESETS

    return [
        {"name": each.name, "summary": each.summary, "models": list(each.kinds), "candidates": each.candidates}
        for each in PRESETS.values()
    ]


def metrics() -> list[dict[str, Any]]:
    """Every metric of every evaluator."""
    from search.naming import metrics as known

    return [facts for reported in known().values() for facts in reported]


def words() -> list[dict[str, Any]]:
    """The vocabulary."""
    from search.naming import words as known

    return [{"name": name, **facts} for name, facts in known().items()]


def runs(folder: Path) -> list[dict[str, Any]]:
    """The runs in a folder."""
    from search.run_list import runs_in

    return runs_in(folder)


_ROWS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "methods": methods,
    "evaluators": evaluators,
    "optimizers": optimizers,
    "presets": presets,
    "metrics": metrics,
    "words": words,
}


def _each(
    names: Iterable[str], facts: Callable[[str], dict[str, Any]], error: type[Exception]
) -> Iterable[dict[str, Any]]:
    for name in names:
        try:
            yield facts(name)
        except error as reason:  # one broken plug-in must not hide the others
            yield {"name": name, "error": str(reason)}


def _print(kind: str, rows: Sequence[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from search.report.terminal import visible

    console = Console(highlight=False)
    if not rows:
        console.print(Text(f"no {kind} here"))
        return
    columns, cells = _TABLES[kind]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        short = place == 0 or column in _SHORT
        right = column in ("candidates", "chosen")
        table.add_column(column, no_wrap=short, justify="right" if right else "left", overflow="fold")
    for row in rows:
        found = [row["name"], *[""] * (len(columns) - 2), row["error"]] if "error" in row else cells(row)
        table.add_row(*(Text(visible(cell)) for cell in found))
    console.print(table)
    _hint(kind, console)


_SHORT = ("candidates", "state", "chosen", "latest")


def _hint(kind: str, console: Console) -> None:
    from rich.text import Text

    hints = {
        "runs": "paretomerge status RUN says more of one.",
        "presets": "paretomerge init PRESET fills one in; explain PRESET shows it.",
        "methods": "paretomerge explain METHOD says more of one.",
    }
    console.print(Text(hints.get(kind, "paretomerge explain NAME says more of one."), "dim"))


def _method(row: dict[str, Any]) -> list[str]:
    from search.method_facts import needs_text

    return [row["name"], row["scope"], needs_text(row["needs"]), row["formula"]]


def _evaluator(row: dict[str, Any]) -> list[str]:
    names = ", ".join(each["name"] for each in row["metrics"]) or "its own"
    required = [_option_text(each) for each in row["options"] if each["required"]]
    more = len(row["options"]) - len(required)
    return [row["name"], row["summary"], names, ", ".join(required + [f"{more} more"] * bool(more)) or "none"]


def _optimizer(row: dict[str, Any]) -> list[str]:
    return [row["name"], row["summary"], _options(row)]


def _metric(row: dict[str, Any]) -> list[str]:
    from search.cli.explain import arrow, bounds_text

    return [row["name"], row["evaluator"], f"{arrow(row)} {bounds_text(row)}", row["says"]]


def _run(row: dict[str, Any]) -> list[str]:
    from datetime import datetime

    done = f"{row['candidates']}/{row['budget']}" if row["budget"] else str(row["candidates"])
    latest = "" if row["latest"] is None else f"{datetime.fromtimestamp(row['latest']):%Y-%m-%d %H:%M}"
    chosen = "–" if row["chosen"] is None else str(row["chosen"])
    return [row["name"], row["state"], done, chosen, latest, ", ".join(row["objectives"])]


def _options(row: dict[str, Any]) -> str:
    return ", ".join(_option_text(each) for each in row["options"]) or "none"


def _option_text(option: dict[str, Any]) -> str:
    if option["required"]:
        return f"{option['name']} (required)"
    default = option["default"]
    if default is None or isinstance(default, dict | list):
        return str(option["name"])
    from search.cli.explain import plain

    return f"{option['name']}={plain(default)}"


_TABLES: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any]], list[str]]]] = {
    "methods": (("method", "scope", "needs", "formula"), _method),
    "evaluators": (("evaluator", "asks", "metrics", "options"), _evaluator),
    "optimizers": (("optimizer", "what it is", "options"), _optimizer),
    "presets": (("preset", "for"), lambda row: [row["name"], row["summary"]]),
    "metrics": (("metric", "of", "range", "meaning"), _metric),
    "words": (("word", "meaning"), lambda row: [row["name"], row["says"]]),
    "runs": (("run", "state", "candidates", "chosen", "latest", "objectives"), _run),
}
