"""``paretomerge explain``: what a name means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.cli.completing import complete_names
from search.cli.options import JsonOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console


def explain(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A method, evaluator, optimizer, preset, metric, key of a config (search.fidelity) or word; or a "
            "merge method in a file, path/to/file.py:ClassName.",
            autocompletion=complete_names,
            show_default=False,
        ),
    ],
    json: JsonOption = False,
) -> None:
    """Explain a method, an evaluator, a key of a config, a word.

    Of a method: formula, conventions, parameters with their ranges, paper, an example. Of an evaluator: options,
    metrics, a record of its data, a section of a config. What several things are called is said of each.
    """
    from search.naming import explain as explained

    found = explained(name)
    if json:
        from search.report.console import print_json

        print_json({**found[0], "also": found[1:]} if len(found) > 1 else found[0])
        return
    from rich.console import Console

    console = Console(highlight=False)
    show = {
        "method": print_method, "evaluator": _print_evaluator, "optimizer": _print_optimizer, "preset": _print_preset,
        "metric": _print_metric, "key": _print_key, "word": _print_word,
    }  # fmt: skip
    for place, facts in enumerate(found):
        if place:
            console.print()
        show[facts["kind"]](facts, console)


def print_method(facts: dict[str, Any], console: Console) -> None:
    """The facts of a merge method as text and a table."""
    import yaml
    from rich.padding import Padding
    from rich.text import Text

    from search.method_facts import default_text, needs_text, range_text

    _title(facts["name"], "a merge method", console)
    console.print(Padding(Text(facts["formula"]), (0, 2)))
    for paragraph in facts["doc"]:
        console.print()
        console.print(Text(paragraph))
    console.print()
    lines = {
        "paper": facts["paper"],
        "needs": needs_text(facts["needs"]),
        "scope": facts["scope"],
        "order": "of the sources does not matter" if facts["symmetric"] else "of the sources matters",
    }
    if facts["needs"]["sources"][1] == 1:
        del lines["order"]
    if facts["conventions"]:
        lines["conventions"] = ", ".join(facts["conventions"])
    if facts["fixed"]:
        lines["fixed"] = f"{', '.join(facts['fixed'])}: a search may set, but not vary them"
    for key, value in lines.items():
        console.print(Text.assemble((f"{key:12}", "dim"), value))
    console.print()
    rows = [
        (each["name"], "each source" if each["per_source"] else "the method", range_text(each), default_text(each),
         each["doc"])
        for each in facts["parameters"]
    ]  # fmt: skip
    _table(("parameter", "of", "range", "default", "meaning"), rows, console, whole=2)
    if facts["example"] is not None:
        console.print(Text("In a recipe:", "dim"))
        data = {"groups": [{"in": ["attention.0", "mlp.0"], **facts["example"]}]}
        # Printed as it is: a line that the terminal wrapped would not be YAML any more.
        print(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), end="")


def _print_evaluator(facts: dict[str, Any], console: Console) -> None:
    import json

    from rich.text import Text

    _title(facts["name"], "an evaluator", console)
    if facts["summary"]:
        console.print(Text(f"  {facts['summary']}"))
    console.print()
    if facts["metrics"]:
        rows = [(each["name"], arrow(each), bounds_text(each), each["says"] + _only(each)) for each in facts["metrics"]]
        _table(("metric", "", "range", "meaning"), rows, console)
    _print_options(facts["options"], console)
    if facts["record"] is not None:
        console.print(Text("A line of its data file:", "dim"))
        print(json.dumps(facts["record"], ensure_ascii=False))
    if facts["example"] is not None:
        console.print(Text("In a config, under `evaluators`:", "dim"))
        print(f"mine: {facts['example']}")


def _print_optimizer(facts: dict[str, Any], console: Console) -> None:
    from rich.text import Text

    _title(facts["name"], "an optimizer", console)
    for paragraph in (facts["summary"], *facts["doc"]):
        console.print(Text(paragraph))
        console.print()
    _print_options(facts["options"], console)
    console.print(Text("In a config:", "dim"))
    print(facts["example"])


def _print_preset(facts: dict[str, Any], console: Console) -> None:
    from rich.text import Text

    _title(facts["name"], "a preset", console)
    console.print(Text(f"  {facts['summary']}\n"))
    console.print(Text.assemble(("models      ", "dim"), ", ".join(facts["models"])))
    console.print(Text.assemble(("candidates  ", "dim"), str(facts["candidates"])))
    console.print()
    print(facts["template"], end="")
    console.print(Text("\nTo fill it in:", "dim"))
    print(facts["example"])


def _print_metric(facts: dict[str, Any], console: Console) -> None:
    _title(facts["name"], "a metric", console)
    rows = [
        (each["evaluator"], arrow(each), bounds_text(each), each["says"] + _only(each)) for each in facts["reported_by"]
    ]
    _table(("of", "", "range", "meaning"), rows, console)


def _print_key(facts: dict[str, Any], console: Console) -> None:
    from rich.text import Text

    _title(facts["name"], "a key of a config", console)
    if facts["summary"]:
        console.print(Text(f"  {facts['summary']}"))
    console.print()
    console.print(Text.assemble(("takes       ", "dim"), facts["type"]))
    if facts["required"]:
        console.print(Text.assemble(("            ", "dim"), "required"))
    elif facts["default"] is not None and not isinstance(facts["default"], dict):
        console.print(Text.assemble(("default     ", "dim"), plain(facts["default"])))
    if facts["keys"]:
        console.print()
        rows = [
            (each["name"], each["type"], "" if isinstance(each["default"], dict) else plain(each["default"], ""),
             each["says"])
            for each in facts["keys"]
        ]  # fmt: skip
        _table(("key", "takes", "default", "meaning"), rows, console)


def _print_word(facts: dict[str, Any], console: Console) -> None:
    from rich.text import Text

    _title(facts["name"], "a word", console)
    console.print(Text(f"  {facts['summary']}"))
    if facts["see"]:
        console.print(Text.assemble(("  see also ", "dim"), ", ".join(facts["see"])))


def _print_options(options: Sequence[dict[str, Any]], console: Console) -> None:
    rows = [
        (each["name"], each["type"], "required" if each["required"] else plain(each["default"], ""), each["says"])
        for each in options
    ]
    if rows:
        _table(("option", "takes", "default", "meaning"), rows, console)


def arrow(metric: dict[str, Any]) -> str:
    """↑ where more is better, ↓ where less is."""
    return "↑" if metric["direction"] == "maximize" else "↓"


def bounds_text(metric: dict[str, Any]) -> str:
    """``0 … 1``, ``0 and more``."""
    low, high = metric["low"], metric["high"]
    unit = f" {metric['unit']}" if metric.get("unit") else ""
    if low is None:
        return f"of the data{unit}"
    return f"{low:g} and more{unit}" if high is None else f"{low:g} … {high:g}{unit}"


def plain(value: Any, nothing: str = "nothing") -> str:
    """A default as YAML would have it."""
    import json

    if value is None:
        return nothing
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _only(metric: dict[str, Any]) -> str:
    return f" (with {metric['with']})" if metric.get("with") else ""


def _title(name: str, what: str, console: Console) -> None:
    from rich.text import Text

    console.print(Text.assemble((name, "bold"), (f"  {what}", "dim")))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], console: Console, *, whole: int = 1) -> None:
    """A table whose first ``whole`` columns never wrap."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for place, column in enumerate(columns):
        table.add_column(column, no_wrap=place < whole, ratio=None)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
