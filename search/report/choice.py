"""What ``paretomerge choose`` shows: a candidate's scores with intervals, and its coefficients per depth."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from evaluators.contract import Split
from merging.recipe import Group
from search.report.console import items_shown, score_text
from search.report.terminal import cell, visible
from search.results import Results


def choice_data(results: Results, id: int, rule: str) -> dict[str, Any]:
    """The facts, for machines."""
    return {
        "candidate": id,
        "rule": rule,
        "recipe_hash": results.candidate(id).recipe_hash,
        **{split: results.values(id, split) for split in ("search", "selection", "holdout")},
        "coefficients": {
            expert: {str(group): value for group, value in row.items()}
            for expert, row in _coefficients(results, id).items()
        },
    }


def print_choice(results: Results, id: int, rule: str, console: Console, split: Split = "selection") -> None:
    """Print a choice.

    Args:
        results: of the run.
        id: the candidate.
        rule: by which it was chosen.
        console: where to.
        split: "selection": what it was chosen on, and its coefficients. "holdout": what it is worth.
    """
    if split == "selection":
        console.print(visible(f"candidate {id}: {rule}"), markup=False, highlight=False)
        console.print(_scores(results, id, "selection"))
        for expert, row in _coefficients(results, id).items():
            console.print(visible(f"coefficients of {expert} by depth"), markup=False, highlight=False)
            console.print(_depths(row))
    else:
        shown = items_shown(results, "holdout")
        console.print(
            visible(f"holdout, items that neither search nor choice has seen ({shown}; 95 % intervals)"),
            markup=False, highlight=False,
        )  # fmt: skip
        console.print(_scores(results, id, "holdout"))


def _scores(results: Results, id: int, split: Split) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    metrics = list(results.scores[split][id])
    for name in metrics:
        table.add_column(cell(name), justify="right", no_wrap=True)
    rows = [("this candidate", id)]
    if results.chosen is not None and results.chosen != id:
        rows.append((f"the run's choice ({results.chosen})", results.chosen))
    rows += [(each.label, each.candidate) for each in results.baselines]
    retention = {}
    for label, row in rows:
        found = results.scores[split].get(row)
        if found is None:
            continue
        retention = dict(
            zip(results.objectives.names, results.judge.retention(results.scores[split], row), strict=True)
        )
        cells = []
        for name in metrics:
            kept = f" ({retention[name]:.0%})" if name in retention else ""
            cells.append(f"{score_text(results, row, split, name)}{kept}")
        table.add_row(cell(label), *cells, style="bold" if row == id else None)
    return table


def _coefficients(results: Results, id: int) -> dict[str, dict[Group, float]]:
    return results.stages[results.candidate(id).stage].space.table(results.recipe(id))


def _depths(row: dict[Group, float]) -> Table:
    """A row per depth, a column per module kind."""
    groups = sorted(row, key=lambda group: group.order)
    kinds = list(dict.fromkeys((group.stack, group.kind) for group in groups))
    depths = list(dict.fromkeys((group.stack, group.depth) for group in groups))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("depth", justify="right", no_wrap=True)
    for stack, kind in kinds:
        table.add_column(cell(f"{stack}/{kind}" if stack else kind), justify="right", no_wrap=True)
    for stack, depth in depths:
        cells = [
            f"{row[group]:.2f}" if of == stack and (group := Group(kind, depth, stack)) in row else ""
            for of, kind in kinds
        ]
        table.add_row("-" if depth is None else str(depth), *cells)
    return table
