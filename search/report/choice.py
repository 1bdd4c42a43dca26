"""What ``paretomerge choose`` shows: a candidate's scores with intervals, and its coefficients per depth, or its path
through the layers."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table

from evaluators.contract import Split
from merging.recipe import Group
from search.report.console import items_shown, score_text
from search.report.hop_texts import PATH_HEADER, counts_text, hops_in, path_rows
from search.report.score_tables import Row, score_tables
from search.report.terminal import visible
from search.results import Results
from search.space.hops import Path


def choice_data(results: Results, id: int, rule: str) -> dict[str, Any]:
    """The facts, for machines: of a run that searches paths ``path``, a model, layer and scale for every hop, in place
    of ``coefficients``."""
    facts = {
        "candidate": id,
        "rule": rule,
        "recipe_hash": results.candidate(id).recipe_hash,
        **{split: results.values(id, split) for split in ("search", "selection", "holdout")},
    }
    path = hops_in(results.recipe(id))
    if path is not None:
        return {**facts, "path": [{"model": hop.alias, "layer": hop.layer, "scale": hop.scale} for hop in path]}
    coefficients = {
        expert: {str(group): value for group, value in row.items()}
        for expert, row in _coefficients(results, id).items()
    }
    return {**facts, "coefficients": coefficients}


def print_choice(results: Results, id: int, rule: str, console: Console, split: Split = "selection") -> None:
    """Print a choice.

    Args:
        results: of the run.
        id: the candidate.
        rule: by which it was chosen.
        console: where to.
        split: "selection": what it was chosen on, and its coefficients. "holdout": what it is worth.
    """

    def say(text: str) -> None:
        console.print(visible(text), markup=False, highlight=False)

    if split == "selection":
        say(f"candidate {id}: {rule}")
        say(f"its scores there ({items_shown(results, 'selection')}; 95 % intervals)")
        tables = _scores(results, id, "selection", console.width)
    else:
        seen = items_shown(results, "holdout")
        say(f"holdout, items that neither search nor choice has seen ({seen}; 95 % intervals)")
        tables = _scores(results, id, "holdout", console.width)
    for table in tables:
        console.print(table)
    if split == "selection":
        _print_made_of(results, id, console, say)


def _print_made_of(results: Results, id: int, console: Console, say: Callable[[str], None]) -> None:
    """Its path, or its coefficients."""
    path = hops_in(results.recipe(id))
    if path is not None:
        say(f"path through the layers: {counts_text(path)}")
        for table in score_tables(PATH_HEADER[0], PATH_HEADER[1:], _hops(path), console.width):
            console.print(table)
        return
    for expert, row in _coefficients(results, id).items():
        say(f"coefficients of {expert} by depth")
        for table in _depths(row, console.width):
            console.print(table)


def _hops(path: Path) -> list[Row]:
    return [Row(first, rest) for first, *rest in path_rows(path)]


def opening_lines(results: Results, id: int, before: bool | None) -> list[str]:
    """What was done about the holdout, and what comes next.

    Args:
        results: of the run, as it is now.
        id: the candidate.
        before: whether its holdout scores were there already; None where the holdout was left closed.
    """
    said = []
    if results.is_first:
        said.append("The holdout stays closed to the first search of a hybrid.")
    elif before is None:
        said.append("The holdout was left closed. `paretomerge choose` without --keep-closed opens it.")
    elif before:
        said.append("Its holdout was open already; nothing was evaluated.")
    else:
        looks = f"{results.openings} time{'' if results.openings == 1 else 's'}"
        said.append(
            f"Its holdout is open now, and that is written down: this run has looked at the holdout {looks}. The run's "
            f"own recommendation stays candidate {results.chosen}."
        )
    said.append(f"Next: paretomerge export {shlex.quote(str(results.folder))} --candidate {id} --out DIR")
    return said


def _scores(results: Results, id: int, split: Split, width: int) -> list[Table]:
    metrics = list(results.scores[split][id])
    rows = [("this candidate", id)]
    if results.chosen is not None and results.chosen != id:
        rows.append((f"the run's choice ({results.chosen})", results.chosen))
    rows += [(each.label, each.candidate) for each in results.baselines]
    found = []
    for label, row in rows:
        if row not in results.scores[split]:
            continue
        kept = dict(zip(results.objectives.names, results.judge.retention(results.scores[split], row), strict=True))
        cells = [
            score_text(results, row, split, name) + (f" ({kept[name]:.0%})" if name in kept else "") for name in metrics
        ]
        found.append(Row(label, cells, bold=row == id))
    return score_tables("merge", metrics, found, width)


def _coefficients(results: Results, id: int) -> dict[str, dict[Group, float]]:
    return results.stages[results.candidate(id).stage].space.table(results.recipe(id))


def _depths(row: dict[Group, float], width: int) -> list[Table]:
    """A row per depth, a column per module kind; every stack of layers for itself."""
    tables: list[Table] = []
    groups = sorted(row, key=lambda group: group.order)
    for stack in dict.fromkeys(group.stack for group in groups):
        kinds = list(dict.fromkeys(group.kind for group in groups if group.stack == stack))
        depths = dict.fromkeys(group.depth for group in groups if group.stack == stack)
        rows = [
            Row(
                "-" if depth is None else str(depth),
                [f"{row[group]:.2f}" if (group := Group(kind, depth, stack)) in row else "" for kind in kinds],
            )
            for depth in depths
        ]
        tables += score_tables(f"{stack} depth" if stack else "depth", kinds, rows, width)
    return tables
