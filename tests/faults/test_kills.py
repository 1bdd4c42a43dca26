"""kill -9 at random moments and at chosen ones: nothing is lost, and the end is the undisturbed run's."""

from __future__ import annotations

import random

import pytest
from launching import Launcher
from searches import Searches
from striking import Struck, of_the_search, of_the_start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

IN_THE_SEARCH = [
    ("kill_at_call", {"target": "search.store:Store.create"}),
    ("kill_at_call", {"target": "search.store:Store.create", "after": True}),
    ("kill_at_statement", {"number": 2}),
    ("kill_at_call", {"target": "search.setup:prepare_evaluators"}),
    ("kill_at_call", {"target": "merging.materialize:Materializer.apply", "number": 3}),
    ("kill_at_call", {"target": "merging.materialize:check_finite_result", "number": 4}),
    ("kill_at_call", {"target": "evaluators.exact_match:ExactMatch.score_items", "number": 4}),
    ("kill_at_call", {"target": "evaluators.exact_match:ExactMatch.score_items", "number": 5, "after": True}),
    *(("kill_at_statement", {"number": number}) for number in (3, 5, 9, 16, 26, 40)),
    *(("kill_during_commit", {"number": 5, "seconds": seconds}) for seconds in (0.0, 0.0005, 0.002)),
]
"""Of the strict search: every kill comes after some progress, and there is more of it to be made."""


def test_at_random_moments(launcher: Launcher, calm: Searches) -> None:
    struck = Struck(launcher, calm, "random")
    chance = random.Random(1)
    while struck.kills < 6 and not struck.finished:
        struck.strike(moment=of_the_search(chance, 20, struck.folder) if struck.kills else of_the_start(chance, 2.0))
    assert struck.kills >= 3
    struck.finish()
    struck.compare("calm")
    assert struck.faults == []


def test_at_chosen_moments_of_the_search(launcher: Launcher, calm: Searches) -> None:
    struck = Struck(launcher, calm, "chosen")
    for fault in IN_THE_SEARCH:
        assert struck.strike(fault), (fault, struck.faults)
        assert struck.faults == []
    assert 0 < struck.concluded < 24
    struck.finish()
    struck.compare("calm")
    assert struck.faults == []


def test_with_results_that_come_in_any_order(launcher: Launcher, calm: Searches) -> None:
    """Four tasks under way: a strict run is the same run whatever comes first, kills and all."""
    wide = ("scatter_results", {"slots": 4})
    for name, kills in (("wide-calm", 0), ("wide-struck", 4)):
        struck = Struck(launcher, calm, name, faults=[wide])
        for number in range(kills):
            fault = ("kill_at_call", {"target": "evaluators.exact_match:ExactMatch.score_items", "number": 11})
            assert struck.strike(fault if number % 2 else ("kill_at_statement", {"number": 20 + 5 * number}))
        struck.finish()
        assert struck.faults == []
    assert struck.compare("wide-calm", more=4 * 4) > 0
    assert struck.faults == []


def test_under_a_steady_schedule(launcher: Launcher, calm: Searches) -> None:
    """Nobody waits, so no two runs are the same; but nothing is lost, nothing twice, and the log replays exactly."""
    wide = ("scatter_results", {"slots": 4})
    struck = Struck(launcher, calm, "steady", ["--set", "workers.schedule=steady"], [wide])
    chance = random.Random(2)
    for number in (14, 31, 8):
        assert struck.strike(("kill_at_statement", {"number": number}))
    while struck.kills < 5 and not struck.finished:
        struck.strike(moment=of_the_search(chance, 20, struck.folder))
    struck.finish()
    assert struck.concluded == 24
    # one more candidate, proposed after the whole log was replayed
    struck.finish("--set", "search.budget.candidates=25")
    assert struck.concluded == 25
    assert struck.faults == []


def test_in_the_report_and_in_an_export(launcher: Launcher, calm: Searches) -> None:
    """A report is there whole or not at all, and an export too; what a killed one has written is cleared away."""
    ends = []
    for name in ("written", "written again"):
        struck = Struck(launcher, calm, name)
        struck.finish()
        struck.strike_report()
        ends.append(struck.strike_export())
        struck.compare("calm", more=0)
        assert struck.faults == []
        assert not [each for each in struck.folder.iterdir() if each.name.startswith(".report")]
    assert ends[0] == ends[1]
