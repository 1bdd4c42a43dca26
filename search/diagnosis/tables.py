"""The tables of a diagnosis: header and rows of plain text, which a terminal and the page each draw in their way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from search.diagnosis.quantities import (
    ALIGNMENT,
    ALL,
    COSINE,
    EFFECTIVE_RANK,
    NORM_RATIO,
    OVERLAP,
    SIGN_CONFLICT,
    STABLE_RANK,
    SUBSPACE,
    Quantity,
    Series,
    chance_of,
    named,
)

if TYPE_CHECKING:
    from merging.diagnose.results import Diagnosis, Measures


class Table(NamedTuple):
    """A table of text.

    Attributes:
        title: what it shows.
        header: a cell a column; the first column names the rows.
        rows: likewise.
    """

    title: str
    header: list[str]
    rows: list[list[str]]


def experts_table(diagnosis: Diagnosis) -> Table:
    """A row for every expert: how long its task vector is, and of what ranks."""
    quantities = _known(diagnosis.whole, (NORM_RATIO, EFFECTIVE_RANK, STABLE_RANK, ALIGNMENT), diagnosis.aliases)
    names = {
        NORM_RATIO.key: "‖τ‖/‖θ0‖", EFFECTIVE_RANK.key: "effective rank", STABLE_RANK.key: "stable rank",
        ALIGNMENT.key: "alignment",
    }  # fmt: skip
    rows = [[alias, *_texts(diagnosis.whole, quantities, alias)] for alias in diagnosis.aliases]
    return Table("Task vectors, over the whole model", ["expert", *(names[each.key] for each in quantities)], rows)


def pairs_table(diagnosis: Diagnosis) -> Table | None:
    """A row for every pair of experts; None where there is one expert."""
    pairs = diagnosis.pairs
    if not pairs:
        return None
    quantities = _known(diagnosis.whole, (COSINE, SIGN_CONFLICT, OVERLAP, SUBSPACE), pairs)
    names = {
        COSINE.key: "cosine", SIGN_CONFLICT.key: "sign conflict", OVERLAP.key: "overlap (chance)",
        SUBSPACE.key: "subspace (chance)",
    }  # fmt: skip
    rows = [[named(pair), *(_beside_chance(diagnosis.whole, each, pair) for each in quantities)] for pair in pairs]
    return Table("Pairs, over the whole model", ["pair", *(names[each.key] for each in quantities)], rows)


def scopes_table(title: str, first: str, scopes: Mapping[str, Measures], diagnosis: Diagnosis) -> Table:
    """A row for every scope: of pairs the mean cosine without its sign, and conflict and overlap of all together.

    Args:
        title: of the table.
        first: what its rows are.
        scopes: name -> measures.
        diagnosis: whose.
    """
    pairs = diagnosis.pairs
    header = [first, "weights", *(["|cosine|", "sign conflict", "overlap"] if pairs else []), "‖τ‖/‖θ0‖, most"]
    rows = []
    for name, measures in scopes.items():
        row = [name, counted(measures.elements)]
        if pairs:
            row += [
                COSINE.text(_mean(abs(each) for each in _values(measures, COSINE, pairs))),
                SIGN_CONFLICT.text(together(measures, SIGN_CONFLICT, pairs)),
                OVERLAP.text(together(measures, OVERLAP, pairs)),
            ]
        longest = max(_values(measures, NORM_RATIO, diagnosis.aliases), default=None)
        rows.append([*row, NORM_RATIO.text(longest)])
    return Table(title, header, rows)


def numbers_table(title: str, scopes: Mapping[str, Measures], quantity: Quantity, series: Sequence[Series]) -> Table:
    """The numbers of a heat map: a row for every scope, a column for every series."""
    rows = [[name, *(quantity.text(quantity.value(each, one)) for one in series)] for name, each in scopes.items()]
    return Table(title, ["group", *(named(each) for each in series)], rows)


def together(measures: Measures, quantity: Quantity, pairs: Sequence[Series]) -> float | None:
    """The number of all experts together; where there is none, the mean over pairs."""
    known = quantity.value(measures, ALL)
    return known if known is not None else _mean(_values(measures, quantity, pairs))


def counted(number: int) -> str:
    """``1.24 B``, ``7.1 M``, ``912``: how many weights."""
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return str(number)


def _known(measures: Measures, quantities: Sequence[Quantity], series: Sequence[Series]) -> list[Quantity]:
    return [each for each in quantities if any(each.value(measures, one) is not None for one in series)]


def _texts(measures: Measures, quantities: Sequence[Quantity], series: Series) -> list[str]:
    return [each.text(each.value(measures, series)) for each in quantities]


def _beside_chance(measures: Measures, quantity: Quantity, series: Series) -> str:
    """``0.118 (0.111)``: a number, and what it would be by chance, where that is known."""
    text, chance = quantity.text(quantity.value(measures, series)), chance_of(measures, series, quantity)
    return text if chance is None else f"{text} ({quantity.text(chance)})"


def _values(measures: Measures, quantity: Quantity, series: Sequence[Series]) -> list[float]:
    found = [quantity.value(measures, each) for each in series]
    return [each for each in found if each is not None]


def _mean(values: Iterable[float]) -> float | None:
    known = list(values)
    return sum(known) / len(known) if known else None
