"""One candidate for a wish: a mix of skills, a bound to keep, one skill to push. No new evaluation.

The choice is made among the finalists on their selection scores, which no search has seen. A mix is a weighting of
retentions under the augmented Tchebycheff scalarisation (:func:`search.pareto.tchebycheff`): unlike a weighted sum it
reaches every point of the front. A bound is judged as a constraint of the search is: by the confidence bound of the
score (:mod:`search.constraints`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from search.constraints import Constraint
from search.errors import NothingFeasible, SearchError
from search.positions import did_you_mean
from search.results import Results
from search.store import Store


@dataclass(frozen=True)
class Wish:
    """What somebody wants of a merge. With nothing given: the knee.

    Attributes:
        mix: objective -> weight > 0, as ``evaluator`` or ``evaluator.metric``; those not named count nothing.
        at_least: metric -> the least that its score must be shown to reach (a metric to minimise: the most).
        maximize: the metric to push; the mix (or the knee) decides if None.
        confidence: with which a bound must be shown, one-sided, in [0.5, 1).
    """

    mix: Mapping[str, float] = field(default_factory=dict)
    at_least: Mapping[str, float] = field(default_factory=dict)
    maximize: str | None = None
    confidence: float = 0.9

    @staticmethod
    def parse(mix: str | None, at_least: Sequence[str], maximize: str | None, confidence: float = 0.9) -> Wish:
        """From the words of a command line: ``math=0.7,safety=0.3``, ``safety=0.95``, ``math``.

        Raises:
            SearchError: not of that form, or a mix together with one skill to maximise.
        """
        if mix is not None and maximize is not None:
            raise SearchError("expected --mix or --maximize, found both; a mix already says how much each skill counts")
        if not 0.5 <= confidence < 1.0:
            raise SearchError(f"--confidence: expected a number in [0.5, 1), found {confidence:g}")
        weights = _numbers("--mix", mix.split(",")) if mix is not None else {}
        if any(weight < 0 for weight in weights.values()) or (weights and not 0 < sum(weights.values()) < float("inf")):
            raise SearchError(f"--mix {mix}: expected finite weights >= 0 that are not all 0")
        return Wish(weights, _numbers("--at-least", at_least), maximize, confidence)

    def rule(self) -> str:
        """The wish in words, for the log."""
        said = [f"{name} at least {value:g} (confidence {self.confidence:g})" for name, value in self.at_least.items()]
        if self.maximize is not None:
            said.append(f"the best {self.maximize}")
        elif self.mix:
            weights = ", ".join(f"{name} {weight:g}" for name, weight in self.mix.items())
            said.append(f"mix of {weights} (augmented Tchebycheff of retention)")
        else:
            said.append("the knee: the largest smallest retention")
        return "; ".join(said) + ", on the selection split"


def choose(results: Results, wish: Wish) -> int:
    """The candidate that fits a wish best.

    Args:
        results: of a run whose finalists have selection scores.
        wish: what is wanted.

    Returns:
        Its number.

    Raises:
        SearchError: the run has no selection scores yet, or the wish names what is not there.
        NothingFeasible: no finalist keeps the bounds.
    """
    scores = results.scores["selection"]
    if results.chosen is None:
        raise SearchError(
            f"{results.folder}: its finalists have no selection scores yet, so there is nothing honest to choose on; "
            "let the run finish (the same `paretomerge run` command goes on with it)"
        )
    pool = _keeping(results, eligible(results), wish)
    if wish.maximize is not None:
        name = metric_name(results, wish.maximize)
        sign = -1.0 if results.started.metrics.get(name, {}).get("direction") == "minimize" else 1.0
        best = max(sign * scores[id][name][0] for id in pool)
        # few items make many ties: among those, what is best in everything else
        tied = [id for id in pool if sign * scores[id][name][0] == best]
        return results.judge.knee(scores, results.judge.front(scores, tied, "selection"))
    names = results.objectives.names
    given = {metric_name(results, name): weight for name, weight in wish.mix.items()}
    for name in given:
        if name not in names:
            raise SearchError(
                f"--mix: {name} is not an objective of this run, so it has no retention to weigh; its objectives are "
                f"{', '.join(names)}. A bound on it is --at-least {name}=…"
            )
    weights = [given.get(name, 0.0) for name in names] if given else None
    front = results.judge.front(scores, pool, "selection")
    return results.judge.knee(scores, front, weights)


def eligible(results: Results) -> list[int]:
    """Among whom a choice is made: finalists with selection scores that keep the run's constraints there."""
    scores = results.scores["selection"]
    return [id for id in results.finalists if id in scores and results.judge.violation(id, "selection") <= 0.0]


def metric_name(results: Results, word: str) -> str:
    """``evaluator.metric`` for what a person wrote: that, or an evaluator with one metric, or one objective.

    Raises:
        SearchError: there is none, or several.
    """
    first = next(iter(results.scores["search"].values()), {})
    known = sorted(first)
    if word in known:
        return word
    of = [name for name in known if name.partition(".")[0] == word]
    aims = [name for name in of if name in results.objectives.names]
    if len(aims) == 1 or len(of) == 1:
        return (aims or of)[0]
    if of:
        raise SearchError(f"{word!r} has several metrics: {', '.join(of)}; name one of them")
    words = [*known, *dict.fromkeys(name.partition(".")[0] for name in known)]
    raise SearchError(f"there is no metric {word!r}; there are: {', '.join(known)}.{did_you_mean(word, words)}")


def _keeping(results: Results, pool: Sequence[int], wish: Wish) -> list[int]:
    """Those that keep every bound of the wish."""
    bounds = {metric_name(results, name): value for name, value in wish.at_least.items()}
    constraints = [_constraint(results, name, value, wish.confidence) for name, value in bounds.items()]
    if not constraints:
        return list(pool)
    store = Store.open(results.folder, read_only=True)
    try:
        items = {id: store.item_scores(id, "selection") for id in pool}
    finally:
        store.close()
    kept = [id for id in pool if all(each.violation(items[id]) <= 0.0 for each in constraints)]
    if kept:
        return kept
    best = {
        each.name: (max if each.side == "at_least" else min)(each.bound(items[id]) for id in pool)
        for each in constraints
        if pool
    }
    percent = 100 * wish.confidence
    shown = "; ".join(f"{name}: the best {percent:g} % bound is {value:.4g}" for name, value in best.items())
    raise NothingFeasible(
        f"{results.folder}: none of {len(pool)} finalists is shown to keep {', '.join(map(str, constraints))}. "
        f"{shown}. Ask for less, or for less certainty (--confidence 0.5 takes the score itself)."
    )


def _constraint(results: Results, name: str, value: float, confidence: float) -> Constraint:
    """A bound of the wish as a constraint."""
    found = bound_on(results, name, value, confidence)
    if not found.low <= value <= found.high:
        raise SearchError(
            f"--at-least {name}={value:g}: {name} lies in [{found.low:g}, {found.high:g}]; take a value there"
        )
    return found


def bound_on(results: Results, name: str, value: float, confidence: float) -> Constraint:
    """A bound on a metric, as somebody may wish it; a metric to minimise has an upper one.

    Args:
        results: of the run.
        name: ``evaluator.metric``.
        value: the limit.
        confidence: with which it must be shown, one-sided, in [0.5, 1).
    """
    metric = results.started.metrics.get(name, {"direction": "maximize", "low": -math.inf, "high": math.inf})
    side: Literal["at_least", "at_most"] = "at_most" if metric["direction"] == "minimize" else "at_least"
    clusters = results.started.clusters.get(name.partition(".")[0])
    return Constraint(name, side, value, confidence, metric["low"], metric["high"], clusters)


def _numbers(option: str, parts: Sequence[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in parts:
        name, sign, text = part.partition("=")
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not sign or not name.strip() or value != value:
            raise SearchError(f"{option} {part}: expected NAME=NUMBER, such as math=0.7")
        found[name.strip()] = value
    return found
