"""The numbers of a diagnosis that people look at: what each is called, how it is written, which colours it gets.

Everything that is shown (terminal, page) asks here for values, so that a number has one name and one form everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from merging.diagnose.results import Diagnosis, Measures

T = TypeVar("T", bound=Hashable)

Series = str | tuple[str, str]
"""Whose number: an expert's alias, a pair of them, or ``all``."""

WEIGHTY = 0.99
"""Share of the weights that the scopes hold together which are named among the worst, and set the ends of colours: of
the few numbers in norms and biases, any value comes about by chance."""

ALL = "all"
"""The series of what all experts have together."""


@dataclass(frozen=True)
class Quantity:
    """One number of every scope (a tensor, a group, the whole model).

    Attributes:
        key: on the command line and in links.
        title: a few words.
        per: whose number it is.
        attribute: of :class:`merging.diagnose.results.Measures`.
        digits: after the point.
        middle: the colour scale's middle: 0, chance, or None for a scale that has one end.
        means: how to read it: a sentence or two.
        percent: written in per cent.
    """

    key: str
    title: str
    per: Literal["expert", "pair"]
    attribute: str
    digits: int
    middle: Literal["zero", "half", "chance"] | None
    means: str
    percent: bool = False

    def series(self, diagnosis: Diagnosis) -> list[Series]:
        """Whose numbers there are: the experts, or their pairs, and all of them together where that has a number."""
        if self.per == "expert":
            return list(diagnosis.aliases)
        pairs: list[Series] = list(diagnosis.pairs)
        more = len(pairs) > 1 and ALL in getattr(diagnosis.whole, self.attribute)
        return [ALL, *pairs] if more else pairs

    def value(self, measures: Measures, series: Series) -> float | None:
        """The number of one series; None where it is not defined: a rank of what is no matrix."""
        return _of(getattr(measures, self.attribute, None), series)

    def text(self, value: float | None) -> str:
        """The number as people read it; – where there is none."""
        if value is None or not math.isfinite(value):
            return "–"
        text = f"{100 * value:.0f} %" if self.percent else f"{value:.{self.digits}f}"
        return "0" + text[2:] if text.strip("-0.") == "" and text.startswith("-") else text.replace("-", "−")


COSINE = Quantity(
    "cosine", "Cosine of task vectors", "pair", "cosine", 3, "zero",
    "1: two experts change the model in the same direction; 0: in directions that have nothing to do with each other; "
    "below 0: against each other.",
)  # fmt: skip
SIGN_CONFLICT = Quantity(
    "sign_conflict", "Sign conflict", "pair", "sign_conflict", 2, "half",
    "Of the elements that both change much, how many are pulled in opposite directions. Half is what unrelated task "
    "vectors have.",
    percent=True,
)  # fmt: skip
OVERLAP = Quantity(
    "overlap", "Overlap of the largest changes", "pair", "overlap", 3, "chance",
    "Elements among the most changed of both experts, of those among the most changed of either. Beyond chance, they "
    "compete for the same weights.",
)  # fmt: skip
NORM_RATIO = Quantity(
    "norm_ratio", "Length of the task vectors, ‖τ‖/‖θ0‖", "expert", "norm_ratio", 4, None,
    "How far fine-tuning moved the weights, as a share of the base's own length. Above 0.1 is far.",
)  # fmt: skip
EFFECTIVE_RANK = Quantity(
    "effective_rank", "Effective rank of the task vectors", "expert", "effective_rank", 1, None,
    "Of how many directions a matrix's change is made, by the entropy of its singular values. Low ranks leave room for "
    "others.",
)  # fmt: skip
STABLE_RANK = Quantity(
    "stable_rank", "Stable rank of the task vectors", "expert", "stable_rank", 1, None,
    "‖Δ‖² over its largest singular value squared: near 1, one direction is nearly all of the change.",
)  # fmt: skip
SUBSPACE = Quantity(
    "subspace", "Overlap of the leading directions", "pair", "subspace_left", 3, None,
    "How much of the output directions that one expert's largest changes span lies within the other's; 1: all.",
)  # fmt: skip
ALIGNMENT = Quantity(
    "alignment", "Alignment with the sum", "expert", "alignment", 3, None,
    "How much of an expert's change lies within the leading directions of all changes together; low: a merge by "
    "singular vectors loses it.",
)  # fmt: skip

QUANTITIES = (COSINE, SIGN_CONFLICT, OVERLAP, NORM_RATIO, EFFECTIVE_RANK)
"""What has a heat map, in the order of the page."""

MORE = (STABLE_RANK, SUBSPACE, ALIGNMENT)
"""What only tables have."""


def named(series: Series) -> str:
    """``string × language``, ``string``, or ``all experts``."""
    if isinstance(series, tuple):
        return " × ".join(series)
    return "all experts" if series == ALL else series


def shown_quantities(diagnosis: Diagnosis) -> list[Quantity]:
    """Those that have a number anywhere: pairs need two experts, ranks matrices that were looked at."""
    return [
        each
        for each in QUANTITIES
        if any(
            each.value(measures, series) is not None
            for series in each.series(diagnosis)
            for measures in [diagnosis.whole, *diagnosis.groups.values()]
        )
    ]


def chance_of(measures: Measures, series: Series, quantity: Quantity = OVERLAP) -> float | None:
    """What a quantity would be by chance; None where that depends on nothing, or is not known."""
    return _of(getattr(measures, f"{quantity.attribute}_chance", None), series)


def _of(found: Any, series: Series) -> float | None:
    """The number of a series out of what a measure holds: a mapping, one number for all, or nothing."""
    if isinstance(found, Mapping):
        value = found.get(series)
        if value is None and isinstance(series, tuple):
            value = found.get(series[::-1])
    else:
        value = found
    return None if value is None or not math.isfinite(value) else float(value)


def largest(
    diagnosis: Diagnosis, quantity: Quantity, most: int, score: Callable[[float], float] = float
) -> Iterator[tuple[Any, Series, float]]:
    """(group, series, value) of the groups where a quantity is the largest, each group once; of :func:`weighty` ones
    alone."""
    found = []
    for group, measures in weighty(diagnosis.groups).items():
        values = [(quantity.value(measures, series), series) for series in _single(quantity.series(diagnosis))]
        known = [(value, series) for value, series in values if value is not None]
        if known:
            value, series = max(known, key=lambda each: score(each[0]))
            found.append((group, series, value))
    found.sort(key=lambda each: -score(each[2]))
    yield from found[:most]


def weighty(scopes: Mapping[T, Measures]) -> dict[T, Measures]:
    """The largest scopes, as many as hold :data:`WEIGHTY` of the weights together, in the order given."""
    wanted = WEIGHTY * sum(each.elements for each in scopes.values())
    kept, held = set(), 0
    for key, each in sorted(scopes.items(), key=lambda item: -item[1].elements):
        if held >= wanted:
            break
        kept.add(key)
        held += each.elements
    return {key: each for key, each in scopes.items() if key in kept}


def _single(series: Sequence[Series]) -> list[Series]:
    return [each for each in series if each != ALL] or list(series)
