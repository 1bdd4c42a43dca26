"""Few items for the hopeless, all for the good: nested subsets, asynchronous halving, anytime-valid racing.

Pure functions: the loop owns the schedule and the log. A candidate is scored on growing prefixes of one fixed order of
the items (*rungs*). At each rung it may be *halved*, when too many that reached the rung were better, or *raced* out,
when one opponent is shown to beat it on every objective. The opponent is frozen at the first rung and picked on items
of the promoting role only; the test reads items of the testing role only, so that nothing about them made the opponent
look good. Evidence is an e-value: under "the candidate is no worse in this objective", the chance that it ever reaches
1/α, however often one looks, is at most α (Ville's inequality).

The guarantee is for items in random order, as :func:`nested_order` puts them, that are independent of each other.

Sources: e-processes by betting: Waudby-Smith & Ramdas, JRSS B 86, 2024. Mixtures for a binomial: Robbins, Ann. Math.
Statist. 41, 1970. Halving: Li et al., "A System for Massively Parallel Hyperparameter Tuning" (ASHA), MLSys 2020; the
variant that stops instead of promoting. Fair prefixes: Tijdeman, "The chairman assignment problem", Discrete Math. 32,
1980.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import special

from evaluators.contract import Items, ItemScores, Metric
from search import pareto
from search.errors import SearchError

Array = npt.NDArray[np.float64]

RUNGS = (40, 120, 360)
ALPHA = 0.05
PROMOTING_EVERY = 4  # one in four items promotes, three test

# Bets of the mixture: Gauss-Legendre for the uniform distribution on (0, 1), so that ±1 differences give McNemar's mix.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(32)
_BETS = 0.5 * (_NODES + 1.0)
_LOG_WEIGHTS = np.log(0.5 * _WEIGHTS)


class FidelityError(SearchError):
    """Rungs or scores that make no schedule: one paragraph, shown without a traceback."""


# -- subsets ----------------------------------------------------------------------------------------------------------


def nested_order(items: Items, seed: int) -> npt.NDArray[np.int64]:
    """A shuffle in which every prefix has each stratum in its share, to less than one item.

    Depends on the items' content and the seed, not on the order in which the evaluator lists them (its only use is to
    settle ties between items of equal content).

    Args:
        items: of one split.
        seed: another seed is another order.

    Returns:
        [n] places in ``items``; the first m of them are the subset of m items.
    """
    keys = [hashlib.sha256(f"paretomerge-rungs/1:{seed}:{each}".encode()).digest() for each in items.hashes]
    queues: dict[str, list[int]] = {}
    for place in sorted(range(len(items)), key=keys.__getitem__, reverse=True):
        queues.setdefault(items.strata[place], []).append(place)
    strata = sorted(queues, key=lambda name: keys[queues[name][-1]])
    turns = _fair_turns([len(queues[name]) for name in strata])
    return np.array([queues[strata[turn]].pop() for turn in turns], dtype=np.int64)


def _fair_turns(sizes: Sequence[int]) -> list[int]:
    """Tijdeman's assignment: after m turns each stratum has had m · size / total of them, to less than one."""
    total, count = sum(sizes), len(sizes)
    if count <= 1:
        return [0] * total
    share = np.array(sizes, dtype=np.float64) / total
    room = 1.0 - 1.0 / (2.0 * count - 2.0)
    had = np.zeros(count)
    turns = []
    for turn in range(1, total + 1):
        owed = share * turn - had
        # of those to whom a turn may be given now, the one that would be owed too much the soonest
        deadline = np.where((owed >= 1.0 - room - 1e-9) & (had < sizes), (room - owed) / share, np.inf)
        chosen = int(np.argmin(deadline)) if np.isfinite(deadline).any() else int(np.argmax(owed))
        had[chosen] += 1.0
        turns.append(chosen)
    return turns


def roles(items: Items, order: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which items promote (True) and which test (False), one in four and three in four.

    In the order of content hashes that ``order`` is, every run of four items of a stratum has one that promotes, and
    of the places that this leaves open the one is taken at which the whole order is owed one: both roles are spread
    evenly over every prefix and every stratum.

    Args:
        items: of one split.
        order: of all of them, from :func:`nested_order`.

    Returns:
        [n] by place in ``items``.
    """
    promotes = np.zeros(len(items), dtype=np.bool_)
    seen: dict[str, int] = {}
    given: dict[str, int] = {}
    total = 0
    for turn, place in enumerate(order.tolist()):
        stratum = items.strata[place]
        rank = seen.get(stratum, 0)
        seen[stratum] = rank + 1
        has_one = given.get(stratum, 0) > rank // PROMOTING_EVERY
        last_chance = rank % PROMOTING_EVERY == PROMOTING_EVERY - 1
        # the first half item is owed at the start, so that the first promoting item comes early, not last
        owed = (turn + 1 + PROMOTING_EVERY / 2) / PROMOTING_EVERY - total >= 1.0
        if not has_one and (last_chance or owed):
            promotes[place] = True
            given[stratum] = rank // PROMOTING_EVERY + 1
            total += 1
    return promotes


def rung_sizes(n: int, rungs: Sequence[int] = RUNGS) -> tuple[int, ...]:
    """Subset sizes of one evaluator with ``n`` items: the rungs that are smaller, then all.

    Raises:
        FidelityError: no items, or rungs that do not grow.
    """
    if n < 1:
        raise FidelityError(f"expected items to score, found {n}")
    if any(size < 1 for size in rungs) or any(low >= high for low, high in itertools.pairwise(rungs)):
        raise FidelityError(f"expected rungs as growing numbers of items such as {list(RUNGS)}, found {list(rungs)}")
    return (*(size for size in rungs if size < n), n)


# -- evidence ---------------------------------------------------------------------------------------------------------


def mcnemar_e(wins: npt.ArrayLike, losses: npt.ArrayLike) -> Array:
    """Log e-value of "the opponent wins no more often than it loses", for 0/1 items.

    The mixture of p^w (1 − p)^l / 2^−(w+l) over p uniform on (½, 1): log of 2^(w+l+1) B(w+1, l+1) I_½(l+1, w+1).

    Args:
        wins: [...] items that the opponent gets right and the candidate wrong.
        losses: [...] the other way round.

    Returns:
        [...] natural logarithm; 0 without discordant items.
    """
    w, lost = np.asarray(wins, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    above_half = special.betainc(lost + 1.0, w + 1.0, 0.5)
    with np.errstate(divide="ignore"):
        mixed = (w + lost + 1.0) * math.log(2.0) + special.betaln(w + 1.0, lost + 1.0) + np.log(above_half)
    # where the integral underflows, its first term stands for it: less evidence, never more
    floor = -np.log(2.0 * (lost + 1.0))
    return np.asarray(np.where(above_half > 1e-290, np.maximum(mixed, floor), floor))


def betting_e(differences: npt.ArrayLike, bound: float) -> Array:
    """Log e-value of "the mean difference is not above 0", for bounded items.

    The mixture of Π (1 + λ x / bound) over bets λ uniform on (0, 1). It does not depend on the order of the items.

    Args:
        differences: [..., n] opponent − candidate, larger meaning that the opponent is better.
        bound: the largest absolute value that a difference can have, known before the items were seen.

    Returns:
        [...] natural logarithm; 0 for n = 0.

    Raises:
        FidelityError: a difference beyond the bound, or not a number.
    """
    x = np.asarray(differences, dtype=np.float64)
    if not (0.0 < bound < math.inf) or not (np.abs(x) <= bound * (1.0 + 1e-9)).all():
        raise FidelityError(
            f"expected finite differences within ±{bound}, found others; cap them (`capped`) where the metric is not "
            "bounded"
        )
    x = np.clip(x / bound, -1.0, 1.0)
    logs = np.stack([np.log1p(bet * x).sum(axis=-1) for bet in _BETS], axis=-1)
    return np.asarray(special.logsumexp(logs + _LOG_WEIGHTS, axis=-1))


def capped(differences: npt.ArrayLike, cap: float) -> Array:
    """Differences cut to [−cap, cap], which makes counts of errors bounded. What is tested then is the capped mean:
    one wild item counts for ``cap`` and no more."""
    if not 0.0 < cap < math.inf:
        raise FidelityError(f"expected a cap above 0, found {cap}; two or three errors an item are usual")
    return np.clip(np.asarray(differences, dtype=np.float64), -cap, cap)


def suggest_cap(differences: npt.ArrayLike, share: float = 0.95) -> float:
    """A cap from differences between baselines: what ``share`` of those that are not 0 stay within, 1 if there are
    none. To be fixed and logged before racing starts."""
    sizes = np.abs(np.asarray(differences, dtype=np.float64).ravel())
    sizes = sizes[sizes > 0.0]
    return float(np.quantile(sizes, share, method="higher")) if len(sizes) else 1.0


@dataclass(frozen=True)
class Comparison:
    """One objective's items for the test: opponent against candidate on common testing items.

    Attributes:
        differences: [n] utility-oriented, opponent − candidate: positive where the opponent is better.
        bound: the largest absolute value that they can have.
    """

    differences: Array
    bound: float

    def log_e(self) -> float:
        """Evidence that the opponent is better: McNemar's mixture for 0/1 items, betting for others."""
        if self.bound == 1.0 and bool((self.differences == np.rint(self.differences)).all()):
            return float(mcnemar_e((self.differences > 0).sum(), (self.differences < 0).sum()))
        return float(betting_e(self.differences, self.bound))


def compare(
    opponent: ItemScores, candidate: ItemScores, metric: Metric, ids: Sequence[str], cap: float | None = None
) -> Comparison:
    """The testing items that both have a verdict on, as differences of which more is better for the opponent.

    Args:
        opponent: its scores; may hold more items.
        candidate: its scores; may hold more items.
        metric: with direction and bounds.
        ids: the testing items of the subsets scored so far.
        cap: for metrics that are ratios of sums or have no bounds: largest difference of one item in what the
            numerator counts (errors, nats), see :func:`suggest_cap`. None: the values as they are, whose bounds must
            be finite.

    Raises:
        FidelityError: no cap, and the metric has no bounds.
    """
    if cap is None and not math.isfinite(metric.high - metric.low):
        raise FidelityError(f"expected a cap for {metric.name}, which ranges over [{metric.low}, {metric.high}]")
    places = [_scored_places(each) for each in (opponent, candidate)]
    common = [id for id in ids if id in places[0] and id in places[1]]
    values = [
        each.values[metric.name][[place[id] for id in common]] * (
            1.0 if cap is None else each.weights[metric.name][[place[id] for id in common]]
        )
        for each, place in zip((opponent, candidate), places, strict=True)
    ]  # fmt: skip
    differences = (values[0] - values[1]) * (1.0 if metric.direction == "maximize" else -1.0)
    if cap is not None:
        return Comparison(capped(differences, cap), cap)
    return Comparison(np.asarray(differences, dtype=np.float64), metric.high - metric.low)


def _scored_places(scores: ItemScores) -> dict[str, int]:
    statuses: Sequence[str] = scores.statuses or ("ok",) * len(scores)
    return {id: place for place, id in enumerate(scores.ids) if statuses[place] != "unscored"}


# -- decisions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What the race says of a candidate at a rung.

    Attributes:
        dropped: its opponent beats it on every objective.
        opponent: the candidate it was tested against, None where there was none.
        log_e: [objectives] natural logarithms of the e-values; empty without an opponent.
    """

    dropped: bool
    opponent: int | None
    log_e: tuple[float, ...]


def choose_opponent(candidate: npt.ArrayLike, archive: npt.ArrayLike) -> int | None:
    """The archive member that beats a candidate by most in its worst objective, on promoting items.

    Args:
        candidate: [k] utilities on the promoting items of the first rung.
        archive: [m, k] utilities of the complete candidates on the same items.

    Returns:
        Row of a member that none of the archive dominates on these items; of equal ones, the one with the larger sum
        of leads, then the first. It may lead by less than nothing: then the race is unlikely to drop, and costs
        nothing. None for an empty archive.
    """
    members = np.asarray(archive, dtype=np.float64)
    if not len(members):
        return None
    leads = members - np.asarray(candidate, dtype=np.float64)
    leads[~pareto.nondominated(members)] = -np.inf
    return min(range(len(leads)), key=lambda row: (-leads[row].min(), -leads[row].sum(), row))


def decide(opponent: int | None, comparisons: Sequence[Comparison], alpha: float = ALPHA) -> Verdict:
    """Drop a candidate if, and only if, the evidence in *every* objective has reached 1 / alpha at this rung.

    An intersection-union test: what is dropped at level alpha is "in some objective the candidate is no worse than
    this opponent", so that no adjustment for several objectives is needed.

    Args:
        opponent: as frozen at the first rung.
        comparisons: [objectives] on the testing items so far.
        alpha: chance at most, over the whole race, of dropping a candidate that equals its opponent in any objective.
    """
    if opponent is None or not comparisons:
        return Verdict(False, opponent, ())
    evidence = tuple(each.log_e() for each in comparisons)
    return Verdict(min(evidence) >= -math.log(alpha), opponent, evidence)


def halve(
    reached: npt.ArrayLike,
    mine: int,
    keep: float = 1.0 / 3.0,
    *,
    violations: npt.ArrayLike | None = None,
    reference: npt.ArrayLike | None = None,
) -> bool:
    """Whether a candidate goes on to the next rung: it is among the best ``keep`` of those that have reached this one.

    Asynchronous: nobody is waited for, so that early candidates are judged leniently; the first always goes on.

    Args:
        reached: [m, k] utilities at this rung of all that have reached it so far, this candidate among them, whatever
            became of them later.
        mine: this candidate's row.
        keep: share in (0, 1]; at least one goes on.
        violations: [m] total constraint violation; feasible candidates come first.
        reference: [k] the hypervolume's reference point; zeros if None.

    Returns:
        True: go on. The order is by non-domination rank, then by hypervolume contribution within the rank; equal
        points count as one and share their place.
    """
    if not 0.0 < keep <= 1.0:
        raise FidelityError(f"expected to keep a share in (0, 1], found {keep}; a third is usual")
    points = np.asarray(reached, dtype=np.float64)
    broken = np.zeros(len(points)) if violations is None else np.maximum(np.asarray(violations, dtype=np.float64), 0.0)
    ranks = pareto.ranks(points, broken)
    corner = np.zeros(points.shape[1]) if reference is None else np.asarray(reference, dtype=np.float64)
    better = int((ranks < ranks[mine]).sum())
    peers = points[ranks == ranks[mine]]
    distinct, place, count = np.unique(peers, axis=0, return_inverse=True, return_counts=True)
    gains = pareto.contributions(distinct, corner)
    me = int(place.ravel()[int((ranks[:mine] == ranks[mine]).sum())])
    better += int(count[gains > gains[me]].sum())
    return better < max(1, math.ceil(keep * len(points) - 1e-9))
