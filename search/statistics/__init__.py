"""What noisy per-item scores do and do not say: intervals, paired tests, multiplicity, optimism, power.

Pure functions on arrays: no I/O, no torch, and the same input always gives the same bits. Two sums stand for every
aggregate, Σ w·v and Σ w over the items that have a verdict, so that a mean, a word error rate and a loss per byte are
one case; where items come in clusters (several questions on one text), a cluster is the unit.
"""

from __future__ import annotations

from search.statistics.comparison import (
    Indistinguishable,
    ScalarDifference,
    indistinguishable,
    indistinguishable_by,
    scalar_difference,
)
from search.statistics.intervals import Interval, bound, interval, wilson
from search.statistics.multiplicity import adjust, holm
from search.statistics.optimism import Optimism, optimism
from search.statistics.paired import Paired, paired, paired_scores
from search.statistics.power import detectable_difference, half_width, items_needed
from search.statistics.samples import StatisticsError, Table, tabulate
from search.statistics.summaries import interval_of_score

__all__ = [
    "Indistinguishable",
    "Interval",
    "Optimism",
    "Paired",
    "ScalarDifference",
    "StatisticsError",
    "Table",
    "adjust",
    "bound",
    "detectable_difference",
    "half_width",
    "holm",
    "indistinguishable",
    "indistinguishable_by",
    "interval",
    "interval_of_score",
    "items_needed",
    "optimism",
    "paired",
    "paired_scores",
    "scalar_difference",
    "tabulate",
    "wilson",
]
