"""Scores of minibatches made comparable: an easy draw is no merit."""

from __future__ import annotations

import numpy as np
import pytest

from evaluators.contract import ItemScores, Metric
from search.levelling import levelled, part
from search.objectives import Objectives, Target

ITEMS = tuple(f"item{number}" for number in range(400))
EASE = np.linspace(-0.45, 0.45, len(ITEMS))
"""What every model finds easy or hard."""


class Accuracy:
    """An evaluator, as far as it is asked here."""

    def aggregate(self, scores: ItemScores) -> dict[str, float]:
        return {"score": float(np.average(scores.values["score"], weights=scores.weights["score"]))}


class Scored:
    """A run's store, as far as it is asked here."""

    def __init__(self, items: dict[int, ItemScores]) -> None:
        self.items = items

    def item_scores(self, id: int, split: str) -> dict[str, ItemScores]:
        assert split == "search"
        return {"skill": self.items[id]} if id in self.items else {}


def scores_of(skill: float, places: np.ndarray) -> ItemScores:
    values = skill + EASE[places]
    return ItemScores(
        tuple(ITEMS[place] for place in places),
        {"score": values},
        {"score": np.ones(len(places))},
        (),
    )


def objectives() -> Objectives:
    metric = Metric("score", "maximize", 0.0, 1.0)
    return Objectives([Target("skill.score", metric, 0.0, 1.0, None)])


def test_who_drew_easy_items_is_not_better() -> None:
    everything = np.arange(len(ITEMS))
    easy, hard = everything[300:], everything[:100]
    items = {
        0: scores_of(0.40, everything),
        1: scores_of(0.50, everything),
        2: scores_of(0.52, easy),
        3: scores_of(0.60, hard),
    }
    measured = {id: {"skill.score": (Accuracy().aggregate(each)["score"], 0.01)} for id, each in items.items()}
    assert measured[2]["skill.score"] > measured[3]["skill.score"]

    fair = levelled(Scored(items), {"skill": Accuracy()}, objectives(), [0, 1], measured)  # type: ignore[arg-type, dict-item]
    assert fair[2]["skill.score"] == pytest.approx((0.52, 0.01))
    assert fair[3]["skill.score"] == pytest.approx((0.60, 0.01))
    assert (fair[0], fair[1]) == (measured[0], measured[1])


def test_a_repeat_without_items_of_its_own_and_a_run_without_baselines_stay_as_they_are() -> None:
    items = {0: scores_of(0.5, np.arange(len(ITEMS)))}
    measured = {0: {"skill.score": (0.5, 0.01)}, 1: {"skill.score": (0.7, 0.02)}}
    store = Scored(items)
    assert levelled(store, {"skill": Accuracy()}, objectives(), [0], measured) == measured  # type: ignore[arg-type, dict-item]
    assert levelled(store, {"skill": Accuracy()}, objectives(), [], measured) == measured  # type: ignore[arg-type, dict-item]


def test_a_part_keeps_values_weights_and_verdicts_with_their_items() -> None:
    whole = ItemScores(
        ("a", "b", "c"), {"x": np.array([1.0, 2.0, 3.0])}, {"x": np.array([4.0, 5.0, 6.0])}, ("ok", "failed", "ok")
    )
    found = part(whole, ["c", "b"])
    assert found.ids == ("c", "b")
    assert found.values["x"].tolist() == [3.0, 2.0]
    assert found.weights["x"].tolist() == [6.0, 5.0]
    assert found.statuses == ("ok", "failed")
