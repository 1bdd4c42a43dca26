"""A table that fills while seeds are measured: rows by title, columns by name, one value a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.operating.choosing import spread


class Rows:
    """Values by row, column and seed.

    Attributes:
        columns: in the order of the table.
    """

    def __init__(self, columns: Sequence[str]) -> None:
        self.columns = tuple(columns)
        self._values: dict[str, dict[str, list[float]]] = {}

    def add(self, title: str, values: Mapping[str, float]) -> None:
        """One seed's values of a row; columns that are missing stay empty."""
        row = self._values.setdefault(title, {})
        for column, value in values.items():
            if column not in self.columns:
                raise ValueError(f"expected one of the columns {', '.join(self.columns)}; found {column!r}")
            row.setdefault(column, []).append(value)

    def of(self, title: str, column: str) -> list[float]:
        """What the seeds have there."""
        return self._values.get(title, {}).get(column, [])

    def markdown(self, head: str, plain: Sequence[str] = ()) -> str:
        """The table, mean ± standard deviation, in per cent; columns in ``plain`` as numbers, every seed's. A row that
        not all seeds have says how many do."""
        lines = [f"| {head} | {' | '.join(self.columns)} |", "|" + "---|" * (len(self.columns) + 1)]
        seeds = {title: max(map(len, row.values()), default=0) for title, row in self._values.items()}
        most = max(seeds.values(), default=0)
        for title, row in self._values.items():
            named = title if seeds[title] == most else f"{title} ({seeds[title]} of {most} seeds)"
            cells = [
                ", ".join(f"{value:g}" for value in row.get(column, ())) or "–" if column in plain
                else spread(row.get(column, ()))
                for column in self.columns
            ]  # fmt: skip
            lines.append(f"| {named} | {' | '.join(cells)} |")
        return "\n".join(lines)
