"""A replay that recalls what the log remembers, instead of proposing everything again, comes to the same optimizer."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from search.optimizers import registry
from search.optimizers.contract import (
    Asked,
    Box,
    Genome,
    Optimizer,
    OptimizerError,
    Outcome,
    Settings,
    Told,
    Trial,
    remembered,
    replay,
)

BOX = Box(6, (3,))
CASES = [
    ("sms_emoa", {}, 2),
    ("sms_emoa", {"prescreen": "gp", "prescreen_quality": -1e9}, 2),  # always screened
    ("sms_emoa", {"prescreen": "quadratic", "prescreen_quality": -1e9}, 2),
    ("sms_emoa", {"prescreen": "gp", "prescreen_quality": 1.0}, 2),  # never
    ("nsga2", {}, 2),
    ("tpe", {}, 1),
    ("auto", {}, 2),
    ("catcma", {}, 1),  # remembers nothing: it is asked again
]


def settings(name: str, options: dict[str, Any], objectives: int) -> Settings:
    center = Genome((0.5,) * 6, (0,))
    return Settings(BOX, objectives, 3, 200, (-2.0,) * objectives, center, options=options, seconds=1.0)


def outcome(trial: Trial, objectives: int) -> Outcome:
    values = np.asarray(trial.genome.values)
    found = tuple(float(-np.mean((values - at) ** 2)) for at in np.linspace(0.3, 0.7, objectives))
    if trial.id % 9 == 4:
        return Outcome("failed", reason="NaN")
    broken = float(values[0] - 0.8)  # by some, so that constraints have models too
    return Outcome("complete", found, violations=(broken, float(values.mean() - 0.7)))


def live(optimizer: Optimizer, objectives: int, asks: int) -> list[Asked | Told]:
    """Three workers; the log as JSON keeps it."""
    log: list[Asked | Told] = []
    pending: list[Trial] = []
    for id in range(asks):
        trial = Trial(id, optimizer.ask(id, tuple(pending)))
        memo = remembered(optimizer, id)
        log.append(Asked(trial, tuple(pending), None if memo is None else json.loads(json.dumps(memo))))
        pending.append(trial)
        if len(pending) == 3:
            done = pending.pop(id % 3)
            log.append(Told(done, outcome(done, objectives)))
            optimizer.tell(*log[-1])  # type: ignore[misc]
    return log


class Counting:
    """An optimizer whose asks are counted."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.asks = inner, 0

    def ask(self, id: int, pending: Any) -> Genome:
        self.asks += 1
        return self.inner.ask(id, pending)  # type: ignore[no-any-return]

    def tell(self, trial: Trial, outcome: Outcome) -> None:
        self.inner.tell(trial, outcome)

    def remembered(self, id: int) -> Any:
        return remembered(self.inner, id)

    def recall(self, trial: Trial, memo: Any) -> None:
        self.inner.recall(trial, memo)


@pytest.mark.parametrize(
    ("name", "options", "objectives"),
    [pytest.param(*each, marks=() if each[:2] == ("sms_emoa", {}) else pytest.mark.slow) for each in CASES],
    ids=str,
)
def test_it_goes_on_as_if_it_had_proposed_everything(name: str, options: dict[str, Any], objectives: int) -> None:
    given = settings(name, options, objectives)
    asks = 60 if name != "tpe" else 30
    undisturbed = registry.build(name, given)
    log = live(undisturbed, objectives, asks)
    again = Counting(registry.build(name, given))
    assert replay(again, log) == []
    recalls = name != "catcma"
    assert again.asks == (1 if recalls else asks)  # the last one, where a change of the code would show
    assert all((event.memo is not None) == recalls for event in log if isinstance(event, Asked))
    waiting = [event.trial for event in log if isinstance(event, Asked)]
    told = {event.trial.id for event in log if isinstance(event, Told)}
    pending = tuple(trial for trial in waiting if trial.id not in told)
    for id in range(asks, asks + 12):
        trial = Trial(id, undisturbed.ask(id, pending))
        assert again.ask(id, pending) == trial.genome
        for each in (undisturbed, again):
            each.tell(trial, outcome(trial, objectives))
    diagnosis = getattr(undisturbed, "diagnosis", dict)()
    assert getattr(again.inner, "diagnosis", dict)() == diagnosis


@pytest.mark.slow
def test_models_are_fitted_once_and_then_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    from search.optimizers.surrogates import GaussianProcess

    given = settings("sms_emoa", {"prescreen": "gp", "prescreen_quality": -1e9}, 2)
    log = live(registry.build("sms_emoa", given), 2, 60)
    fits = sum("fit" in (event.memo or {}) for event in log if isinstance(event, Asked))
    assert fits > 5
    searched = 0
    optimized = GaussianProcess._optimized

    def counted(self: GaussianProcess, start: Any) -> Any:
        nonlocal searched
        searched += 1
        return optimized(self, start)

    monkeypatch.setattr(GaussianProcess, "_optimized", counted)
    assert replay(registry.build("sms_emoa", given), log) == []
    assert searched <= 4  # two objectives and two constraints, at most once: if the last ask came with a fit


@pytest.mark.slow
@pytest.mark.parametrize(
    "memo",
    [
        {},
        {"inner": None},
        {"inner": {"step": "x", "flip": 0.1}},
        {"inner": [], "taken": 3},
        {"inner": {"step": 0.1, "flip": 0.1}, "taken": "x"},
        {"inner": {"step": 0.1, "flip": 0.1}, "fit": [["x"]]},
        {"inner": {"step": 0.1, "flip": 0.1}, "fit": 7},
        {"inner": {"step": 0.1, "flip": 0.1}, "fit": [[0.0]] * 4},
        {"inner": {"step": 0.1, "flip": 0.1}, "fit": [[float("nan")] * 9] * 4},
        {"inner": {"step": 0.1, "flip": 0.1}, "fit": []},
    ],
)
def test_what_no_optimizer_wrote_is_refused(memo: dict[str, Any]) -> None:
    given = settings("sms_emoa", {"prescreen": "gp", "prescreen_quality": -1e9}, 2)
    log = live(registry.build("sms_emoa", given), 2, 40)
    place = max(at for at, event in enumerate(log) if isinstance(event, Asked) and event.memo and "fit" in event.memo)
    assert isinstance(log[place], Asked)
    log[place] = log[place]._replace(memo=memo)
    last = max(at for at, event in enumerate(log) if isinstance(event, Asked))
    if place == last:
        log.append(Asked(Trial(99, BOX_CENTER), ()))
    with pytest.raises(OptimizerError, match="log"):
        replay(registry.build("sms_emoa", given), log)


BOX_CENTER = Genome((0.5,) * 6, (0,))
