"""Search scores of minibatches, made comparable before finalists are named.

A generation that drew easy items looks good: of 650 candidates on minibatches of 128 items, all 12 finalists came from
one such generation (docs/lab.md). The best baseline is scored on every item, so how easy a minibatch is can be read off
its scores there, and is taken away: a control variate whose coefficient is 1. What is compared is then the paired
difference to one baseline, on the candidate's own items.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from evaluators.contract import Evaluator, ItemScores
from search.judge import Scores
from search.objectives import Objectives
from search.store import Store


def levelled(
    store: Store,
    evaluators: Mapping[str, Evaluator],
    objectives: Objectives,
    baselines: Sequence[int],
    scores: Scores,
) -> dict[int, dict[str, tuple[float, float]]]:
    """Scores on the search split, as if everybody had been given items as hard as all of them are on average.

    Args:
        store: the run's.
        evaluators: they know how items become one number.
        objectives: which way is better.
        baselines: candidates that were scored on every item.
        scores: as they were measured.

    Returns:
        candidate -> metric -> (value, standard error): of an objective its value, plus what the baseline that is best
        in it has on all items beyond what it has on the candidate's; all else, and baselines, as they were.
    """
    result = {id: dict(each) for id, each in scores.items()}
    known = {id: store.item_scores(id, "search") for id in baselines if id in scores}
    if not known:
        return result
    best = {
        target.name: max(known, key=lambda id, target=target: target.utility(scores[id][target.name][0]))  # type: ignore[misc]
        for target in objectives.targets
    }
    eases: dict[tuple[str, tuple[str, ...]], float] = {}
    for id in scores.keys() - known.keys():
        items = store.item_scores(id, "search")
        for objective, baseline in best.items():
            name, _, metric = objective.partition(".")
            own = items.get(name)
            if own is None:
                continue
            at = (objective, own.ids)
            if at not in eases:
                there = evaluators[name].aggregate(part(known[baseline][name], own.ids))[metric]
                eases[at] = there - scores[baseline][objective][0]
            value, error = scores[id][objective]
            if np.isfinite(eases[at]):
                result[id][objective] = (value - eases[at], error)
    return result


def part(scores: ItemScores, ids: Sequence[str]) -> ItemScores:
    """The scores of some of the items, in the order of ``ids``.

    Raises:
        KeyError: one that there is no score of.
    """
    place = {id: at for at, id in enumerate(scores.ids)}
    rows = [place[id] for id in ids]
    return ItemScores(
        tuple(ids),
        {metric: values[rows] for metric, values in scores.values.items()},
        {metric: weights[rows] for metric, weights in scores.weights.items()},
        tuple(scores.statuses[row] for row in rows) if scores.statuses else (),
    )
