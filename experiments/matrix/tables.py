"""Outcomes as Markdown tables: means over training seeds with standard errors, and paired differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from experiments.matrix.records import Outcome

ALONE = ("base", "expert ")
"""How the arms begin that are no merges."""


class Estimate(NamedTuple):
    """A mean over training seeds.

    Attributes:
        mean: nan without values.
        error: standard error of the mean; nan for fewer than two values.
        count: how many values.
    """

    mean: float
    error: float
    count: int

    @staticmethod
    def of(values: Sequence[float]) -> Estimate:
        """Of one value a seed."""
        if not values:
            return Estimate(math.nan, math.nan, 0)
        error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return Estimate(statistics.fmean(values), error, len(values))

    def text(self, sign: str = "") -> str:
        """``54.2 ± 0.8``; the mean alone where there is no error."""
        if self.count == 0:
            return "–"
        return f"{self.mean:{sign}.1f}" + ("" if math.isnan(self.error) else f" ± {self.error:.1f}")


def by_arm(outcomes: Iterable[Outcome]) -> dict[str, dict[int, Outcome]]:
    """Arm -> training seed -> outcome, in the order in which arms first come."""
    found: dict[str, dict[int, Outcome]] = {}
    for each in outcomes:
        found.setdefault(each.arm, {})[each.seed] = each
    return found


def mean_of(seeds: dict[int, Outcome], measure: Callable[[Outcome], float]) -> Estimate:
    """Over the seeds of one arm."""
    return Estimate.of([measure(each) for each in seeds.values()])


def difference(one: dict[int, Outcome], other: dict[int, Outcome], measure: Callable[[Outcome], float]) -> Estimate:
    """One − other, paired by the seeds that both have."""
    both = sorted(one.keys() & other.keys())
    return Estimate.of([measure(one[seed]) - measure(other[seed]) for seed in both])


def best_baseline(outcomes: Iterable[Outcome]) -> str | None:
    """The merge without matrix methods that has the largest mean on the holdout, over the seeds of the most complete.

    That is chosen with hindsight, so a difference to it is on the safe side.
    """
    arms = by_arm(each for each in outcomes if not each.ours and not each.arm.startswith(ALONE))
    most = max((len(seeds) for seeds in arms.values()), default=0)
    full = {arm: seeds for arm, seeds in arms.items() if len(seeds) == most}
    return max(full, key=lambda arm: mean_of(full[arm], lambda each: each.mean).mean, default=None)


def family_table(outcomes: Sequence[Outcome]) -> str:
    """All arms on one family."""
    arms = by_arm(outcomes)
    rival = best_baseline(outcomes)
    head = f"| | mean score | smallest retention | mean − {rival or 'best baseline'} | by seed | items | CPU s |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for arm, seeds in arms.items():
        ahead, each = "", ""
        if rival is not None and arm != rival and not arm.startswith(ALONE):
            ahead = difference(seeds, arms[rival], lambda each: each.mean).text("+")
            both = sorted(seeds.keys() & arms[rival].keys())
            each = ", ".join(f"{seeds[seed].mean - arms[rival][seed].mean:+.1f}" for seed in both)
        cells = [
            f"**{arm}**" if arm == rival else arm,
            mean_of(seeds, lambda each: each.mean).text(),
            mean_of(seeds, lambda each: each.worst).text(),
            ahead,
            each,
            f"{statistics.fmean(found.items for found in seeds.values()):.0f}",
            f"{statistics.fmean(found.seconds for found in seeds.values()):.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def choices_table(outcomes: Sequence[Outcome]) -> str:
    """What was chosen on search data, seed by seed."""
    lines = ["| | " + " | ".join(f"seed {seed}" for seed in sorted({each.seed for each in outcomes})) + " |"]
    lines.append("|---" * lines[0].count(" | ") + "|---|")
    for arm, seeds in by_arm(outcomes).items():
        if any(each.chosen for each in seeds.values()):
            said = [
                ", ".join(f"{name} {value}" for name, value in seeds[seed].chosen.items()) if seed in seeds else ""
                for seed in sorted({each.seed for each in outcomes})
            ]
            lines.append(f"| {arm} | {' | '.join(said)} |")
    return "\n".join(lines)


def across(outcomes: Sequence[Outcome], arm: str, rival: str) -> Estimate:
    """One arm's mean score − another's over all pairs of family and seed."""
    values = {(each.family, each.seed, each.arm): each.mean for each in outcomes}
    keys = sorted({(family, seed) for family, seed, name in values if name == arm})
    return Estimate.of(
        [values[*key, arm] - values[*key, rival] for key in keys if (*key, rival) in values]
    )  # fmt: skip
