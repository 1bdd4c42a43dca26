"""Diagnostics that ask the models: λ curves, loss barriers and redundancy, each a line of merges on one live model.

What is asked comes from the caller as a callable on the live model; nothing here knows of data. Every curve leaves the
live model as the base. A merge whose weights or whose answer are not finite counts as nan, in JSON as null: that is a
finding, not an error.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from merging.diagnose.candidates import Candidates, Progress, Score, measured, plain
from merging.materialize import Materializer
from merging.recipe import MergingError

LAMBDAS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.5)
"""λ of a curve unless others are asked for."""

DROPS = (0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99)
"""Dropped fractions p of a redundancy curve (Yu et al. 2023, arXiv 2311.03099, figure 3)."""

KEEP = 0.98
"""Of an expert's score, what counts as kept."""

Variant = Literal["dare", "drop", "magnitude"]
VARIANTS: tuple[Variant, ...] = ("dare", "drop", "magnitude")
"""Random drop with the rest divided by 1 − p; random drop alone; the smallest dropped, alone."""


@dataclass(frozen=True)
class LambdaCurve:
    """score(θ0 + λ Σ τ_t) over λ.

    Attributes:
        aliases: whose task vectors were added.
        lambdas: ascending.
        scores: [lambdas] higher is better; nan where a merge gave no usable output.
    """

    aliases: tuple[str, ...]
    lambdas: tuple[float, ...]
    scores: tuple[float, ...]

    @property
    def best(self) -> float | None:
        """λ of the highest score, the smallest of equals; None where there is no score."""
        found = [(-score, value) for value, score in zip(self.lambdas, self.scores, strict=True) if score == score]
        return min(found)[1] if found else None

    def as_data(self) -> dict[str, Any]:
        """Plain JSON."""
        scores = [plain(each) for each in self.scores]
        return {
            "experts": list(self.aliases),
            "lambda": list(self.lambdas),
            "score": scores,
            "best": self.best,
        }

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> LambdaCurve:
        """The inverse of :meth:`as_data`."""
        return LambdaCurve(tuple(data["experts"]), tuple(data["lambda"]), _floats(data["score"]))


@dataclass(frozen=True)
class Barrier:
    """L((1−α)θ_a + αθ_b) on the straight line between two models.

    Attributes:
        first, second: aliases, the base's too.
        alphas: ascending from 0 to 1.
        losses: [alphas] lower is better; nan where a merge gave no usable output.
    """

    first: str
    second: str
    alphas: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def excess(self) -> tuple[float, ...]:
        """[alphas] loss above the chord, L(α) − (1−α)L(θ_a) − αL(θ_b); nan where the loss is."""
        a, b = self.losses[0], self.losses[-1]
        return tuple(loss - (1.0 - alpha) * a - alpha * b for alpha, loss in zip(self.alphas, self.losses, strict=True))

    @property
    def height(self) -> float:
        """B = max_α excess: about 0 for linear mode connectivity, never below; ``inf`` where a merge between the two
        gave no usable output, nan where one of the two did."""
        if not math.isfinite(self.losses[0] + self.losses[-1]):
            return math.nan
        return max(0.0, max((math.inf if each != each else each) for each in self.excess))

    @property
    def at(self) -> float:
        """α of the highest point."""
        excess = [math.inf if each != each else each for each in self.excess]
        return self.alphas[excess.index(max(excess))]

    def as_data(self) -> dict[str, Any]:
        """Plain JSON."""
        return {
            "first": self.first,
            "second": self.second,
            "alpha": list(self.alphas),
            "loss": [plain(each) for each in self.losses],
            "barrier": plain(self.height),
            "at": self.at,
        }

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> Barrier:
        """The inverse of :meth:`as_data`."""
        return Barrier(data["first"], data["second"], tuple(data["alpha"]), _floats(data["loss"]))


@dataclass(frozen=True)
class Redundancy:
    """How much of a task vector can be dropped.

    Attributes:
        alias: the expert.
        base, own: scores of the base and of the expert, higher better.
        drops: dropped fractions p, ascending.
        scores: variant -> [drops][seeds]; one column for what has no chance in it.
        keep: what counts as kept.
    """

    alias: str
    base: float
    own: float
    drops: tuple[float, ...]
    scores: Mapping[Variant, tuple[tuple[float, ...], ...]]
    keep: float = KEEP

    def means(self, variant: Variant) -> tuple[float, ...]:
        """[drops] means over seeds; nan where one is."""
        return tuple(statistics.fmean(each) for each in self.scores[variant])

    def spreads(self, variant: Variant) -> tuple[float, ...]:
        """[drops] standard deviations over seeds; 0 where there is one, nan where a score is."""
        return tuple(_spread(each) for each in self.scores[variant])

    def ratios(self, variant: Variant) -> tuple[float, ...]:
        """[drops] mean score / the expert's; nan unless the expert's is positive."""
        return tuple(each / self.own if self.own > 0.0 else math.nan for each in self.means(variant))

    def gains(self, variant: Variant) -> tuple[float, ...]:
        """[drops] (mean score − base) / (expert − base): 0 at the base, 1 at the expert; nan where the two are equal.
        Stricter than the ratio where the base is good already."""
        learned = self.own - self.base
        return tuple((each - self.base) / learned if learned else math.nan for each in self.means(variant))

    def tolerated(self, variant: Variant = "dare", of: Literal["ratio", "gain"] = "ratio") -> float:
        """p*: the largest drop up to which every mean ratio (or gain) is at least ``keep``; 0 where the first is not.

        One lucky drop beyond the first that fails does not count.
        """
        largest = 0.0
        for drop, kept in zip(self.drops, self.ratios(variant) if of == "ratio" else self.gains(variant), strict=True):
            if not kept >= self.keep:
                break
            largest = drop
        return largest

    def as_data(self) -> dict[str, Any]:
        """Plain JSON."""
        variants = {
            variant: {
                "score": [[plain(each) for each in row] for row in rows],
                "ratio": [plain(each) for each in self.ratios(variant)],
                "gain": [plain(each) for each in self.gains(variant)],
                "tolerated": self.tolerated(variant),
                "tolerated_gain": self.tolerated(variant, "gain"),
            }
            for variant, rows in self.scores.items()
        }
        return {
            "expert": self.alias,
            "base": plain(self.base),
            "own": plain(self.own),
            "drop": list(self.drops),
            "keep": self.keep,
            "variants": variants,
        }

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> Redundancy:
        """The inverse of :meth:`as_data`."""
        scores = {
            cast(Variant, variant): tuple(_floats(row) for row in each["score"])
            for variant, each in data["variants"].items()
        }
        base, own = _floats([data["base"], data["own"]])
        return Redundancy(data["expert"], base, own, tuple(data["drop"]), scores, data["keep"])


def lambda_curve(
    materializer: Materializer,
    score: Score,
    aliases: Collection[str] | None = None,
    *,
    lambdas: Sequence[float] = LAMBDAS,
    on_point: Progress | None = None,
) -> LambdaCurve:
    """Score θ0 + λ Σ τ_t for several λ; of one expert, it is the line from the base through it.

    The best λ was chosen by these scores, so they flatter it: report one from other data.

    Args:
        materializer: with its live model.
        score: higher is better.
        aliases: whose task vectors; all experts' if None.
        lambdas: any finite numbers.
        on_point: told of progress.

    Raises:
        MergingError: an unknown expert, no λ, or a score that is no number.
    """
    candidates = Candidates(materializer)
    chosen, values = candidates.known(aliases), _ascending(lambdas, "λ", -math.inf, math.inf)
    scores = []
    with candidates.restored():
        for value in values:
            what = f"{' + '.join(chosen)}, λ {value:g}"
            finite = candidates.add(dict.fromkeys(chosen, value))
            scores.append(measured(score, materializer.model, finite, what))
            _tell(on_point, len(scores), len(values), what)
    return LambdaCurve(chosen, values, tuple(scores))


def loss_barrier(
    materializer: Materializer,
    loss: Score,
    first: str,
    second: str,
    *,
    points: int = 11,
    on_point: Progress | None = None,
) -> Barrier:
    """Ask on the straight line between two models, ends included (Frankle et al. 2020, arXiv 1912.05671).

    Args:
        materializer: with its live model.
        loss: lower is better; negate a score.
        first, second: aliases of two models; one may be the base.
        points: how many, evenly spaced, ends included; 11 to 25 are usual.
        on_point: told of progress.

    Raises:
        MergingError: an unknown model, twice the same, fewer than 3 points, or a loss that is no number.
    """
    candidates = Candidates(materializer)
    base = materializer.sources.base
    ends = tuple(each for each in (first, second) if each != base)
    if first == second:
        raise MergingError(f"expected two models to look between, found {first!r} twice")
    candidates.known(ends)
    if points < 3:
        raise MergingError(f"expected at least 3 points of a loss barrier, its two ends included, found {points}")
    alphas = tuple(number / (points - 1) for number in range(points))
    losses = []
    with candidates.restored():
        for alpha in alphas:
            what = f"{first} to {second}, α {alpha:.2f}"
            weights = {first: 1.0 - alpha, second: alpha}
            finite = candidates.add({each: weights[each] for each in ends})
            losses.append(measured(loss, materializer.model, finite, what))
            _tell(on_point, len(losses), points, what)
    return Barrier(first, second, alphas, tuple(losses))


def redundancy(
    materializer: Materializer,
    score: Score,
    alias: str,
    *,
    drops: Sequence[float] = DROPS,
    seeds: int = 3,
    variants: Sequence[Variant] = VARIANTS,
    keep: float = KEEP,
    on_point: Progress | None = None,
) -> Redundancy:
    """Score θ0 + drop_p(τ) for several p, per tensor (Yu et al. 2023, arXiv 2311.03099).

    Asks 2 + drops × (2·seeds + 1) times with all variants. Masks of one seed are nested: what is dropped at one p is
    dropped at every larger one, so that a seed's curve has no noise of its own between its points.

    Args:
        materializer: with its live model.
        score: higher is better.
        alias: the expert.
        drops: fractions in [0, 1).
        seeds: masks for each p, of what drops by chance; at least 1, and 3 to say anything of their spread.
        variants: which of :data:`VARIANTS`.
        keep: what counts as kept, in (0, 1].
        on_point: told of progress.

    Raises:
        MergingError: an unknown expert or variant, a number out of range, or a score that is no number.
    """
    candidates = Candidates(materializer)
    candidates.known((alias,))
    values = _ascending(drops, "dropped fraction", 0.0, 1.0)
    unknown = [each for each in variants if each not in VARIANTS]
    if unknown or not variants or seeds < 1 or not 0.0 < keep <= 1.0 or values[-1] == 1.0:
        raise MergingError(
            f"a redundancy curve expects variants of {', '.join(VARIANTS)}, fractions in [0, 1), at least 1 seed and "
            f"keep in (0, 1], found {', '.join(variants) or 'no variant'}, up to {values[-1]:g}, {seeds} and {keep:g}"
        )
    plan = [
        (variant, drop, seed)
        for variant in variants
        for drop in values
        for seed in range(1 if variant == "magnitude" else seeds)
    ]
    total, found = len(plan) + 2, dict[tuple[Variant, float], list[float]]()
    with candidates.restored():
        ends = []
        for title, coefficients in (("the base", {}), (alias, {alias: 1.0})):
            ends.append(measured(score, materializer.model, candidates.add(coefficients), title))
            _tell(on_point, len(ends), total, title)
        for number, (variant, drop, seed) in enumerate(plan, start=len(ends) + 1):
            what = f"{alias}, {variant} {drop:g}, seed {seed}"
            finite = _drop(candidates, alias, variant, drop, seed)
            found.setdefault((variant, drop), []).append(measured(score, materializer.model, finite, what))
            _tell(on_point, number, total, what)
    scores = {variant: tuple(tuple(found[variant, drop]) for drop in values) for variant in variants}
    return Redundancy(alias, ends[0], ends[1], values, scores, keep)


def _drop(candidates: Candidates, alias: str, variant: Variant, drop: float, seed: int) -> bool:
    own = {"coefficient": 1.0, "density": 1.0 - drop}
    if variant == "magnitude":
        return candidates.apply("breadcrumbs", {alias: own | {"gamma": 0.0}})
    return candidates.apply("dare_linear", {alias: own}, rescale=variant == "dare", seed=seed)


def _ascending(values: Sequence[float], what: str, low: float, high: float) -> tuple[float, ...]:
    found = tuple(sorted({float(each) for each in values}))
    if not found or not all(math.isfinite(each) and low <= each <= high for each in found):
        span = "finite numbers" if math.isinf(low) else f"numbers in [{low:g}, {high:g}]"
        raise MergingError(f"expected at least one {what}, {span}, found {', '.join(map(str, values)) or 'none'}")
    return found


def _spread(scores: Sequence[float]) -> float:
    if not all(map(math.isfinite, scores)):  # of which statistics.stdev makes an AttributeError
        return math.nan
    return statistics.stdev(scores) if len(scores) > 1 else 0.0


def _floats(values: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(math.nan if each is None else float(each) for each in values)


def _tell(on_point: Progress | None, done: int, total: int, what: str) -> None:
    if on_point is not None:
        on_point(done, total, what)
