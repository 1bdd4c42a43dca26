"""A diagnosis on a terminal: the verdict in words first, then tables, and a map of layers × module kinds."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table as Drawn
from rich.text import Text

from search.diagnosis.curve_tables import summaries
from search.diagnosis.finding import Finding, suggested_space
from search.diagnosis.quantities import COSINE, NORM_RATIO, SIGN_CONFLICT, Quantity, Series, largest, named
from search.diagnosis.tables import Table, experts_table, pairs_table, scopes_table, together
from search.report.coefficients import OUTSIDE, column_of, columns_of, row_of
from search.report.terminal import cell, visible

if TYPE_CHECKING:
    from merging.diagnose.results import Diagnosis, Measures

_Text = Callable[[float | None], str]

MOST_PAIRS = 15
"""Pairs that a terminal is shown; all of them are in ``--json`` and on the page."""
WORST = 5
"""Groups that are named one by one."""
_SHADES = " ▁▂▃▄▅▆▇█"
_DIGITS = "0123456789"
_MARKS = {"good": "+", "bad": "!", "worst": "!"}
"""What speaks for a merge, and what against; all else has a dash."""
_NUMBER = 4
"""Signs of a cell with a number."""


def print_finding(finding: Finding, console: Console, quantity: Quantity | None = None) -> None:
    """Everything that fits on a terminal.

    Args:
        finding: what was found.
        console: where to.
        quantity: of the map; sign conflict, or the length of the task vector of a single expert, if None.
    """
    diagnosis = finding.diagnosis
    if finding.paths is not None:
        _say("\n".join(finding.paths.sentences) + "\n", console)
    _print_verdict(finding, console)
    _print_table(experts_table(diagnosis), console)
    pairs = pairs_table(diagnosis)
    if pairs is not None:
        _print_table(pairs._replace(rows=pairs.rows[:MOST_PAIRS]), console)
        if len(pairs.rows) > MOST_PAIRS:
            _say(f"and {len(pairs.rows) - MOST_PAIRS} pairs more; all of them are in --json and --html", console)
    _print_table(scopes_table("Module kinds, over all depths", "kind", diagnosis.kinds, diagnosis), console)
    worst = worst_table(diagnosis)
    if worst is not None:
        _print_table(worst, console)
    chosen = quantity or default_map(diagnosis)
    caption, *lines = map_lines(diagnosis, chosen, console) or [Text(f"{chosen.title}: no map, nothing has a value")]
    console.print(caption)
    for line in lines:
        console.print(line, soft_wrap=True)
    if finding.curves is not None:
        console.print()
        _say(finding.curves.says, console)
        for each in summaries(finding.curves):
            _print_table(each, console)
    for note in (*finding.left_out, *diagnosis.notes):
        _say(f"note: {note}", console)


def default_map(diagnosis: Diagnosis) -> Quantity:
    """What the map shows where nobody says."""
    return SIGN_CONFLICT if diagnosis.pairs else NORM_RATIO


def worst_table(diagnosis: Diagnosis) -> Table | None:
    """The groups with most sign conflict; None where there is one expert."""
    if not diagnosis.pairs:
        return None
    rows = []
    for group, pair, value in largest(diagnosis, SIGN_CONFLICT, WORST):
        measures = diagnosis.groups[group]
        longest = max((measures.norm_ratio.get(alias, 0.0) for alias in _members(pair)), default=None)
        rows.append(
            [
                str(group), named(pair), SIGN_CONFLICT.text(value), COSINE.text(COSINE.value(measures, pair)),
                NORM_RATIO.text(longest),
            ]
        )  # fmt: skip
    header = ["group", "pair", "sign conflict", "cosine", "‖τ‖/‖θ0‖"]
    return Table("Groups with most sign conflict", header, rows)


def _print_verdict(finding: Finding, console: Console) -> None:
    verdict = finding.verdict
    for line in textwrap.wrap(visible(verdict.headline), max(20, console.width)):
        console.print(Text(line, "bold"))
    for reason in verdict.reasons:
        _item(reason.text, _MARKS.get(reason.effect, "-"), console)
    for each in verdict.advice:
        _item(each, ">" if console.options.ascii_only else "→", console)
    if finding.suggests:
        _item("In a search's config:", ">" if console.options.ascii_only else "→", console)
        console.print(Text(textwrap.indent(suggested_space(verdict), "    ")))
    console.print()


def _item(text: str, mark: str, console: Console) -> None:
    """A line with a mark, its further lines indented."""
    width = max(20, console.width - 4)
    first, *others = textwrap.wrap(visible(text), width) or [""]
    console.print(Text(f"  {mark} {first}"))
    for each in others:
        console.print(Text(f"    {each}"))


def _print_table(table: Table, console: Console) -> None:
    """A title in a line of its own, and the table; where it is too wide, headings over numbers are wrapped first."""
    columns = list(zip(table.header, *table.rows, strict=True))
    tight = sum(max(map(len, each)) + 3 for each in columns) >= console.width
    drawn = Drawn()
    for index, (name, *cells) in enumerate(columns):
        names = index == 0 or name == "pair"
        least = max([*map(len, cells), *map(len, name.split())])
        drawn.add_column(
            cell(name), justify="left" if names else "right", overflow="fold",
            width=least if tight and not names else None,
        )  # fmt: skip
    for row in table.rows:
        drawn.add_row(*(cell(each) for each in row))
    console.print(Text(visible(table.title), "bold"))
    console.print(drawn)


def _say(text: str, console: Console) -> None:
    console.print(visible(text), markup=False, highlight=False)


# -- the map -----------------------------------------------------------------------------------------------------------


def map_lines(diagnosis: Diagnosis, quantity: Quantity, console: Console) -> list[Text]:
    """Module kinds down, depths across: numbers where there is room, else a sign of how much.

    Args:
        diagnosis: whose groups.
        quantity: of pairs, all of them together.
        console: its width, and what its encoding can show.
    """
    groups = list(diagnosis.groups)
    rows = list(dict.fromkeys(row_of(each) for each in groups))
    columns = [each for each in columns_of(groups) if each != OUTSIDE]
    values = {
        (row_of(group), column_of(group)): _shown(quantity, measures, diagnosis)
        for group, measures in diagnosis.groups.items()
    }
    if not columns or not any(value is not None for value in values.values()):
        return []
    inside = [row for row in rows if any(values.get((row, column)) is not None for column in columns)]
    if not inside:
        return []
    label = max(len(row) for row in inside)
    room = max(10, console.width - label - 3)
    lines = [Text(f"{_what(quantity)}: kinds × depths, 0 next to the input", "bold")]
    numbers = _numbers(quantity, [values.get((row, column)) for row in inside for column in columns])
    if numbers is not None and len(columns) * _NUMBER <= room:
        text, unit = numbers
        lines[0] = Text(f"{_what(quantity)}{unit}: kinds × depths, 0 next to the input", "bold")
        lines.append(Text(f"{'':{label}}  " + "".join(f"{each:>{_NUMBER}}" for each in columns)))
        for row in inside:
            cells = "".join(f"{text(values.get((row, column))):>{_NUMBER}}" for column in columns)
            lines.append(Text(f"{visible(row):{label}}  {cells}"))
        return lines
    return lines + _shaded(quantity, inside, columns, values, label, room, ascii_only=console.options.ascii_only)


def _numbers(quantity: Quantity, values: Sequence[float | None]) -> tuple[_Text, str] | None:
    """How numbers are written in three signs, and their unit; None where they cannot be."""
    highest = max((abs(value) for value in values if value is not None), default=0.0)
    if quantity.percent:
        unit, factor = " in per cent", 100.0
    elif highest <= 1.0:
        unit, factor = (" in hundredths", 100.0) if highest >= 0.1 else (" in thousandths", 1000.0)
    elif highest < 999.5:
        unit, factor = "", 1.0
    else:
        return None
    return (lambda value: "–" if value is None else str(round(factor * value)).replace("-", "−")), unit


def _shaded(
    quantity: Quantity,
    rows: Sequence[str],
    columns: Sequence[str],
    values: dict[tuple[str, str], float | None],
    label: int,
    room: int,
    *,
    ascii_only: bool,
) -> list[Text]:
    """A sign a depth, or a few depths together where there are more than fit: the one farthest from 0."""
    step = -(-len(columns) // room)
    parts = [columns[start : start + step] for start in range(0, len(columns), step)]
    known = [value for value in values.values() if value is not None]
    low, high = min(known), max(known)
    signs = _DIGITS if ascii_only else _SHADES[1:]
    lines = []
    marks = [" "] * (len(parts) + 8)
    for index in range(0, len(parts), 10):
        marks[index : index + len(parts[index][0])] = parts[index][0]
    lines.append(Text(f"{'':{label}}  " + "".join(marks).rstrip()))
    for row in rows:
        cells = ""
        for part in parts:
            found = [value for column in part if (value := values.get((row, column))) is not None]
            share = (max(found, key=abs) - low) / (high - low) if found and high > low else 0.0
            cells += signs[min(len(signs) - 1, int(share * len(signs)))] if found else " "
        lines.append(Text(f"{visible(row):{label}}  {cells}"))
    together = f"; {step} depths a sign" if step > 1 else ""
    lines.append(Text(f"{signs[0]} {quantity.text(low)}   {signs[-1]} {quantity.text(high)}{together}"))
    return lines


def _shown(quantity: Quantity, measures: Measures, diagnosis: Diagnosis) -> float | None:
    """One number of a group: of all pairs together, or of the expert that has most."""
    if quantity.per == "pair":
        return together(measures, quantity, diagnosis.pairs)
    found = [value for alias in diagnosis.aliases if (value := quantity.value(measures, alias)) is not None]
    return max(found, default=None)


def _what(quantity: Quantity) -> str:
    return quantity.title if quantity.per == "pair" else f"{quantity.title}, the largest"


def _members(series: Series) -> tuple[str, ...]:
    return series if isinstance(series, tuple) else (series,)
