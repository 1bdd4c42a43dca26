"""What curves with data say in words: they weigh more than anything that the weights alone say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

from merging.diagnose.curves import Barrier, LambdaCurve, Redundancy
from merging.diagnose.probes import COLLAPSED, ActivationCheck
from merging.diagnose.rules import Reason, number

BARRIER = 0.05
"""Height of a loss barrier, over how far the losses of its line spread: below it two models are connected. Our number;
Frankle et al. 2020 (arXiv 1912.05671) call a rise of the error under 2 points none."""

REDUNDANT = 0.9
"""A task vector that keeps 98 % of its score with this much dropped is redundant: DARE's finding for fine-tuned
language models (Yu et al. 2023, arXiv 2311.03099)."""

DENSE = 0.5
"""One that keeps it with less than this dropped is not."""


class Drawn(Protocol):
    """Curves that were drawn; any may be missing."""

    @property
    def lambdas(self) -> Sequence[LambdaCurve]:
        """λ curves; the first is that of all experts together."""
        ...

    @property
    def barriers(self) -> Sequence[Barrier]:
        """Loss barriers, from the base or between experts."""
        ...

    @property
    def redundancies(self) -> Sequence[Redundancy]:
        """Redundancy curves of single experts."""
        ...

    @property
    def activations(self) -> ActivationCheck | None:
        """Of one merge."""
        ...


def of_curves(drawn: Drawn, aliases: Sequence[str]) -> list[Reason]:
    """Everything that the curves say.

    Args:
        drawn: the curves.
        aliases: of the experts: what else a barrier has at an end is the base.
    """
    found = [reason for curve in drawn.lambdas for reason in _lambda(curve)]
    found += _barriers(drawn.barriers, aliases)
    found += [_redundancy(each) for each in drawn.redundancies]
    return found + ([] if drawn.activations is None else _activations(drawn.activations))


def steepness(barrier: Barrier) -> float:
    """A barrier's height over how far the losses of its line spread, in [0, 1]; nan as the height, and 0 on a line
    without any spread."""
    height = barrier.height
    if not math.isfinite(height):
        return 1.0 if height == math.inf else math.nan
    spread = max(barrier.losses) - min(barrier.losses)
    return height / spread if spread > 0.0 else 0.0


def _lambda(curve: LambdaCurve) -> list[Reason]:
    best = curve.best
    if best is None:
        text = "No λ gave a merge with usable output."
        return [Reason("lambda", text, effect="worst", words="without usable output")]
    scores = dict(zip(curve.lambdas, curve.scores, strict=True))
    who = "all" if len(curve.aliases) > 1 else curve.aliases[0]
    start = f"One λ for {who}: best at λ = {best:g} (score {scores[best]:.3f}"
    if 0.0 in scores and best != 0.0 and math.isfinite(scores[0.0]):
        start += f", the base {scores[0.0]:.3f}"
    if best == 0.0:
        text = f"{start}): no merge scored better than the base."
        return [Reason("lambda", text, best, effect="bad", words="no better than the base")]
    if len(curve.lambdas) > 1 and best == max(curve.lambdas):
        return [Reason("lambda", f"{start}), the largest that was tried: try larger ones.", best)]
    return [Reason("lambda", f"{start}).", best)]


def _barriers(barriers: Sequence[Barrier], aliases: Sequence[str]) -> list[Reason]:
    between = [each for each in barriers if each.first in aliases and each.second in aliases]
    known = [each for each in between if not math.isnan(each.height)]
    if not known:
        return []
    worst = max(known, key=steepness)
    high = steepness(worst)
    names = f"{worst.first} and {worst.second}"
    if math.isinf(worst.height):
        text = f"On the line between {names} some merges give no usable output."
        return [Reason("barrier", text, None, BARRIER, effect="worst", words="with a loss barrier")]
    if high <= BARRIER:
        who = names if len(known) == 1 else "any two experts"
        text = f"No loss barrier between {who}: the straight line between them nowhere rises above its ends."
        return [Reason("barrier", text, high, BARRIER, effect="good", words="without a loss barrier")]
    text = (
        f"Between {names} the loss rises {worst.height:.3g} above the line of its ends, most at α = {worst.at:.2g}: "
        "their mean loses what both can do."
    )
    return [Reason("barrier", text, high, BARRIER, effect="bad", words="with a loss barrier")]


def _redundancy(found: Redundancy) -> Reason:
    kept = found.tolerated()
    start = f"{found.alias} keeps {found.keep:.0%} of its score with up to {kept:.0%} of its changes dropped (DARE)"
    if not found.own > 0.0:
        text = f"{found.alias} has no positive score, so that what it keeps of it cannot be said."
        return Reason("redundancy", text)
    if kept >= REDUNDANT:
        return Reason("redundancy", f"{start}: sparse methods cost nothing.", kept, REDUNDANT, effect="good")
    if kept < DENSE:
        if not kept:
            start = (
                f"{found.alias} loses more than {1.0 - found.keep:.0%} of its score with {found.drops[0]:.0%} of its "
                "changes dropped (DARE)"
            )
        return Reason("redundancy", f"{start}: every change counts, sparse methods will hurt.", kept, DENSE)
    return Reason("redundancy", f"{start}.", kept, REDUNDANT)


def _activations(check: ActivationCheck) -> list[Reason]:
    if not check.finite:
        broken = next(each.name for each in check.blocks if not each.finite)
        text = f"Activations of {broken} are not finite: the merge gives no usable output."
        return [Reason("activation", text, where=broken, effect="worst", words="without usable output")]
    known = [each for each in check.blocks if math.isfinite(each.variance_ratio)]
    if not known:
        return []
    worst = min(known, key=lambda each: each.variance_ratio)
    count = len(check.collapsed)
    if not count:
        text = f"Activations of the mean vary at least {number(worst.variance_ratio)} times as much as the experts'."
        return [Reason("activation", text, worst.variance_ratio, COLLAPSED, effect="good")]
    text = (
        f"Activations of the mean collapse in {count} of {len(check.blocks)} blocks: in {worst.name} they vary "
        f"{number(worst.variance_ratio)} times as much as the experts'."
    )
    return [
        Reason("activation", text, worst.variance_ratio, COLLAPSED, worst.name, "bad", "with collapsed activations")
    ]
