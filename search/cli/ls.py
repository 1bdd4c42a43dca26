"""``paretomerge ls``: what there is to choose from."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from search.cli.options import JsonOption

if TYPE_CHECKING:
    from pydantic import BaseModel


class Kind(StrEnum):
    """What can be listed."""

    METHODS = "methods"
    EVALUATORS = "evaluators"
    OPTIMIZERS = "optimizers"


def ls(
    kind: Annotated[Kind, typer.Argument(help="What to list.", show_default=False)],
    json: JsonOption = False,
) -> None:
    """List merge methods, evaluators or optimizers, those of installed packages too."""
    rows = {Kind.METHODS: methods, Kind.EVALUATORS: evaluators, Kind.OPTIMIZERS: optimizers}[kind]()
    if json:
        from search.report.console import print_json

        print_json(rows)
        return
    _print(kind, rows)


def methods() -> list[dict[str, Any]]:
    """Facts of every method, as ``explain`` has them; only name and error of one that cannot be loaded."""
    from merging.methods import names
    from merging.recipe import MergingError
    from search.cli.explain import method_facts

    rows: list[dict[str, Any]] = []
    for name in names():
        try:
            rows.append(method_facts(name))
        except MergingError as error:  # one broken plug-in must not hide the others
            rows.append({"name": name, "error": str(error)})
    return rows


def evaluators() -> list[dict[str, Any]]:
    """Name and options of every evaluator."""
    from evaluators.contract import EvaluatorError
    from evaluators.registry import names, options_model

    rows: list[dict[str, Any]] = []
    for name in names():
        try:
            rows.append({"name": name, "options": _options(options_model(name))})
        except EvaluatorError as error:
            rows.append({"name": name, "error": str(error)})
    return rows


def optimizers() -> list[dict[str, Any]]:
    """Name and options of every optimizer."""
    from search.optimizers.contract import OptimizerError
    from search.optimizers.registry import optimizers as names
    from search.optimizers.registry import options_model

    rows: list[dict[str, Any]] = []
    for name in names():
        try:
            rows.append({"name": name, "options": _options(options_model(name))})
        except OptimizerError as error:
            rows.append({"name": name, "error": str(error)})
    return rows


def _options(model: type[BaseModel]) -> list[dict[str, Any]]:
    required = set(model.model_json_schema().get("required", []))
    fields = model.model_json_schema().get("properties", {})
    return [
        {"name": name, "required": name in required, "default": field.get("default")} for name, field in fields.items()
    ]


def _print(kind: Kind, rows: list[dict[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from search.cli.explain import needs_text

    columns = {Kind.METHODS: ("method", "scope", "needs", "formula")}.get(
        kind, (f"{kind.removesuffix('s')}", "options")
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=column == columns[0])
    for row in rows:
        if "error" in row:
            cells = [row["name"], *[""] * (len(columns) - 2), row["error"]]
        elif kind is Kind.METHODS:
            cells = [row["name"], row["scope"], needs_text(row["needs"]), row["formula"]]
        else:
            cells = [row["name"], ", ".join(_option_text(each) for each in row["options"]) or "none"]
        table.add_row(*(Text(cell) for cell in cells))
    console = Console()
    console.print(table)
    if kind is Kind.METHODS:
        console.print(Text("paretomerge explain METHOD says more of one.", "dim"))


def _option_text(option: dict[str, Any]) -> str:
    if option["required"]:
        return f"{option['name']} (required)"
    default = option["default"]
    if default is None:
        return str(option["name"])
    return f"{option['name']}={default:.4g}" if isinstance(default, float) else f"{option['name']}={default}"
