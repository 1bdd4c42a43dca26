"""What data say, in tables: summaries for a terminal, every point for the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from search.diagnosis.probing import Curves
from search.diagnosis.tables import Table
from search.report.markup import percent

if TYPE_CHECKING:
    from merging.diagnose.curves import Barrier, Redundancy, Variant
    from merging.diagnose.probes import ActivationCheck

VARIANTS: dict[str, str] = {"dare": "DARE", "drop": "at random", "magnitude": "smallest"}
"""What is dropped, in a word."""


def summaries(curves: Curves) -> list[Table]:
    """A table for every curve that was drawn."""
    return [
        *([lambda_table(curves)] if curves.lambdas else []),
        *([barrier_table(curves.barriers)] if curves.barriers else []),
        *([redundancy_table(curves.redundancies)] if curves.redundancies else []),
        *([activation_table(curves.activations)] if curves.activations is not None else []),
    ]


def lambda_table(curves: Curves) -> Table:
    """A row for every λ."""
    curve, skills = curves.lambdas[0], curves.skills[0]
    header = ["λ", *skills, *(["mean"] if len(skills) > 1 else [])]
    rows = []
    for place, value in enumerate(curve.lambdas):
        row = [
            f"{value:g}{' (best)' if value == curve.best else ''}",
            *(number(each[place]) for each in skills.values()),
        ]
        rows.append([*row, *([number(curve.scores[place])] if len(skills) > 1 else [])])
    return Table(f"Scores of base + λ·(sum of task vectors of {', '.join(curve.aliases)})", header, rows)


def barrier_table(barriers: Sequence[Barrier]) -> Table:
    """A row for every line between two models."""
    rows = [
        [
            between(each),
            number(each.losses[0]),
            number(each.losses[-1]),
            number(each.height),
            f"{each.at:.2f}" if each.height > 0.0 else "–",
        ]
        for each in barriers
    ]
    return Table("Loss barriers", ["from – to", "first loss", "last loss", "barrier", "at"], rows)


def redundancy_table(redundancies: Sequence[Redundancy]) -> Table:
    """A row for every expert: what may be dropped while its score is kept."""
    variants: list[Variant] = list(redundancies[0].scores)
    rows = [
        [each.alias, number(each.base), number(each.own), *(f"{100 * each.tolerated(one):.0f} %" for one in variants)]
        for each in redundancies
    ]
    keep = percent(redundancies[0].keep)
    title = f"Redundancy: how much may be dropped, {keep} of the expert's score kept"
    return Table(title, ["expert", "base", "expert's own", *(VARIANTS[each] for each in variants)], rows)


def activation_table(check: ActivationCheck) -> Table:
    """A row for every block."""
    rows = []
    for each in check.blocks:
        near = [value for pair, value in each.similarity.items() if "merged" in pair and pair[0] in each.parents]
        mean = sum(near) / len(near) if near else math.nan
        rows.append([each.name, number(each.variance_ratio), number(mean), "yes" if each.finite else "no"])
    header = ["block", "variance, merged / parents", "CKA to the experts, mean", "finite"]
    return Table("Activations of the plain mean, by block", header, rows)


def barrier_points(barriers: Sequence[Barrier]) -> Table:
    """A row for every point of the lines, a column for every line."""
    rows = [
        [f"{alpha:.2f}", *(number(each.losses[place]) for each in barriers)]
        for place, alpha in enumerate(barriers[0].alphas)
    ]
    return Table("Losses along the lines", ["share of the second", *(between(each) for each in barriers)], rows)


def redundancy_points(redundancies: Sequence[Redundancy]) -> Table:
    """A row for every expert and dropped share: mean score over the expert's own, and its standard deviation."""
    variants: list[Variant] = list(redundancies[0].scores)
    rows = []
    for each in redundancies:
        for place, drop in enumerate(each.drops):
            cells = [
                f"{number(each.ratios(one)[place])} ± {number(relative_spreads(each, one)[place])}" for one in variants
            ]
            rows.append([f"{each.alias}, {100 * drop:g} % dropped", *cells])
    return Table("Score over the expert's own", ["expert", *(VARIANTS[each] for each in variants)], rows)


def relative_spreads(each: Redundancy, variant: Variant) -> list[float]:
    """[drops] standard deviations over seeds, over the expert's own score."""
    return [spread / each.own if each.own > 0.0 else 0.0 for spread in each.spreads(variant)]


def between(each: Barrier) -> str:
    """The two ends of a line."""
    return f"{each.first} – {each.second}"


def number(value: float) -> str:
    """Three digits after the point; – where there is none."""
    if math.isinf(value):
        return "∞"
    return "–" if math.isnan(value) else f"{value:.3f}".replace("-", "−")
