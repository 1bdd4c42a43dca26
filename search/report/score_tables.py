"""Tables of scores that never lose a digit: where the columns do not fit side by side, there are several tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table

from search.report.terminal import cell

SHORTEST_LABEL = 16
"""Characters to which the first column is folded, at most, so that one more column fits."""
_GAP, _EDGES = 3, 2
"""Characters between two columns, and beside the outer ones."""


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        label: of the first column.
        cells: one per column; none of them holds a line break.
        bold: to be seen first.
    """

    label: str
    cells: Sequence[str]
    bold: bool = False


def score_tables(first: str, names: Sequence[str], rows: Sequence[Row], width: int) -> list[Table]:
    """Rows and columns as one table, or as several with the same rows where the columns need more than the width.

    Args:
        first: heads the first column.
        names: head the others; folded to the width of their cells where they are longer.
        rows: as many cells each as there are names.
        width: of the terminal, in characters.
    """
    cells = [[cell(each) for each in row.cells] for row in rows]
    narrow = [max([4, *(row[place].cell_len for row in cells)]) for place in range(len(names))]
    natural = [max(least, cell(name).cell_len) for least, name in zip(narrow, names, strict=True)]
    longest = max([len(first), *(cell(row.label).cell_len for row in rows)])
    tables = []
    for start, end in _chunks(narrow, width - _EDGES - min(longest, SHORTEST_LABEL)):
        given = [widths[start:end] for widths in (natural, narrow)]
        rooms = [width - _EDGES - sum(each) - _GAP * len(each) for each in given]
        place = next((place for place, room in enumerate(rooms) if room >= min(longest, SHORTEST_LABEL)), 1)
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column(cell(first), width=max(4, min(longest, rooms[place])), overflow="fold")
        for name, size in zip(names[start:end], given[place], strict=True):
            table.add_column(cell(name), justify="right", width=size, overflow="fold")
        for row, shown in zip(rows, cells, strict=True):
            table.add_row(cell(row.label), *shown[start:end], style="bold" if row.bold else None)
        tables.append(table)
    return tables


def _chunks(widths: Sequence[int], room: int) -> list[tuple[int, int]]:
    """Which columns stand together: as many as fit, one at least."""
    found, start, used = [], 0, 0
    for place, width in enumerate(widths):
        if place > start and used + width + _GAP > room:
            found.append((start, place))
            start, used = place, 0
        used += width + _GAP
    return [*found, (start, len(widths))]
