"""What a salvage keeps of a damaged log, and that the search goes on from there."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_searches import FakeWorker, config, content, start

from evaluators.contract import ItemScores
from search.doctor import examine, mend
from search.errors import SearchError
from search.events import (
    Asked,
    BudgetSpent,
    Chosen,
    Event,
    Failed,
    FinalistsNamed,
    Finished,
    Opened,
    RungReached,
    RunStarted,
    Salvaged,
    Scored,
    Settled,
    Told,
)
from search.lock import RunLock
from search.optimizers.contract import Genome, Outcome
from search.store import DATABASE, Store
from search.store import salvage as salvaging
from search.store.connecting import SALVAGED

STARTED = RunStarted({}, {"base": "sha256:0"}, {}, [], [], {}, "hf", 1, [], [0.0], {})


def damage(folder: Path, *statements: str) -> None:
    connection = sqlite3.connect(folder / DATABASE)
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


def spoil(seq: int) -> str:
    return f"UPDATE events SET payload = payload || ' ' WHERE seq = {seq}"


def told_of(candidate: int) -> str:
    return f"UPDATE events SET payload = payload || ' ' WHERE kind = 'told' AND candidate = {candidate}"


def events(folder: Path) -> list[Event]:
    store = Store.open(folder)  # for writing: it is verified
    found = list(store.events())
    store.close()
    return found


def scores(n: int) -> dict[str, ItemScores]:
    ids = tuple(f"i{k}" for k in range(n))
    return {"a": ItemScores(ids, {"accuracy": np.ones(n)}, {"accuracy": np.ones(n)}, ("ok",) * n)}


def asked(id: int) -> Asked:
    return Asked(id, 0, Genome((0.1 * id,)), f"hash {id}")


def rung(id: int, number: int, dropped: bool = False) -> RungReached:
    return RungReached(id, number, 2, {}, {}, None, {}, dropped, scores(number + 1))


def complete(id: int) -> tuple[Scored, Told]:
    scored = Scored(id, "search", {"a.accuracy": 1.0}, {"a.accuracy": 0.0}, {}, scores=scores(4))
    return scored, Told(id, 0, Outcome("complete", (1.0,), (0.0,), 4))


# Every case: the log, the numbers (from 1) of the events that are spoiled, and those that are still there afterwards.
CASES: dict[str, tuple[list[Event], list[int], list[int]]] = {
    "a conclusion without its scores": ([asked(0), *complete(0), asked(1)], [3], [1, 2, 5]),
    "scores without their conclusion": ([asked(0), *complete(0), asked(1)], [4], [1, 2, 5]),
    "a candidate that nobody asked for": ([asked(0), *complete(0), asked(1), *complete(1)], [2], [1, 5, 6, 7]),
    "a rung, with those behind it": ([asked(0), rung(0, 0), rung(0, 1), rung(0, 2)], [4], [1, 2]),
    "a rung below scores on everything": ([asked(0), rung(0, 0), rung(0, 1), *complete(0)], [3], [1, 2, 5, 6]),
    "why a candidate was stopped": (
        [asked(0), rung(0, 0, True), Told(0, 0, Outcome("censored", (1.0,)))], [3], [1, 2],
    ),
    "how long a failed one took": (
        [asked(0), Failed(0, "search", "NaN"), Told(0, 0, Outcome("failed", reason="NaN"))], [3], [1, 2, 4],
    ),
    "what a duplicate repeats": (
        [asked(0), *complete(0), asked(1), Told(1, 0, Outcome("duplicate", (1.0,), of=0))], [4], [1, 2, 5, 6],
    ),
    "a settled one's scores": (
        [asked(0), asked(1), complete(1)[0], Settled(1, complete(1)[1].outcome), *complete(0), complete(1)[1]],
        [4], [1, 2, 3, 6, 7],
    ),
    "the end, and what it stands on": (
        [asked(0), *complete(0), BudgetSpent("candidates", "1"), FinalistsNamed([0], [0]), Chosen(0, "knee"),
         Opened([0], "data"), Finished(1, 0.5)],
        [4], [1, 2, 6, 7, 8],
    ),
    "a decision on one that is lost": (
        [asked(0), *complete(0), FinalistsNamed([0], [0]), Chosen(0, "knee"), Opened([0], "data")], [2], [1, 7],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_makes_no_sense_without_what_is_lost_is_left_out(case: str, tmp_path: Path) -> None:
    log, spoiled, still_there = CASES[case]
    store = Store.create(tmp_path)
    for event in [STARTED, *log]:
        store.append(event)
    store.close()
    before = [STARTED, *log]
    damage(tmp_path, *(spoil(seq) for seq in spoiled))
    found = mend(tmp_path)
    assert found is not None
    after = events(tmp_path)
    assert [each.payload() for each in after[:-1]] == [before[seq - 1].payload() for seq in still_there]
    assert isinstance(after[-1], Salvaged)
    assert after[-1].events_lost == len(before) - len(still_there) == found.lost.events_lost
    assert f"{DATABASE}.damaged-1" in after[-1].detail
    assert examine(tmp_path).problems == []


def test_of_a_run_whose_events_are_whole_nothing_is_lost(tmp_path: Path) -> None:
    """Tables are derived again, and the second copy of the beginning stands for the first, or the first for it."""
    store = Store.create(tmp_path)
    log = [STARTED, asked(0), rung(0, 0), *complete(0), Finished(1, 0.5)]
    store.append(*log)
    store.close()
    for number, statement in enumerate(
        (
            "UPDATE scores SET value = 0.25",
            "DELETE FROM candidates",
            "DROP TABLE timings",
            "DROP INDEX candidates_by_hash",
            "UPDATE meta SET value = '[]' WHERE key = 'beginning'",
            spoil(1),
            "CREATE TRIGGER t AFTER INSERT ON events BEGIN DELETE FROM scores; END",
        ),
        1,
    ):
        damage(tmp_path, statement)
        found = mend(tmp_path)
        assert found is not None and found.lost.events_lost == 0 and found.lost.candidates_lost == 0
        assert found.kept_at.name == f"{DATABASE}.damaged-{number}" and found.kept_at.exists()
        kept = [each for each in events(tmp_path) if not isinstance(each, Salvaged)]
        assert [each.payload() for each in kept] == [each.payload() for each in log]
    store = Store.open(tmp_path, read_only=True)
    assert store.scores("search") == {0: {"a.accuracy": (1.0, 0.0)}}
    assert len(store.item_scores(0, "search")["a"]) == 4
    store.close()


def test_an_intact_run_is_left_alone(tmp_path: Path) -> None:
    store = Store.create(tmp_path)
    store.append(STARTED, asked(0))
    store.close()
    before = (tmp_path / DATABASE).read_bytes()
    assert mend(tmp_path) is None
    assert (tmp_path / DATABASE).read_bytes() == before
    assert list(tmp_path.glob(f"{DATABASE}.*")) == []


def test_without_its_beginning_nothing_is_salvaged_and_nothing_changed(tmp_path: Path) -> None:
    store = Store.create(tmp_path)
    store.append(STARTED, asked(0))
    store.close()
    damage(tmp_path, spoil(1), "DELETE FROM meta WHERE key = 'beginning'")
    before = (tmp_path / DATABASE).read_bytes()
    with pytest.raises(SearchError, match="the event that begins the run cannot be read"):
        mend(tmp_path)
    assert (tmp_path / DATABASE).read_bytes() == before
    assert list(tmp_path.glob("run.db.*")) == []


def test_a_run_that_is_being_written_is_not_salvaged(tmp_path: Path) -> None:
    store = Store.create(tmp_path)
    store.append(STARTED)
    with RunLock(tmp_path), pytest.raises(SearchError, match="writing to this run"):
        mend(tmp_path)
    store.close()


@pytest.mark.parametrize("interrupted", ["_copy", "flush", "replace"])
def test_a_salvage_that_is_interrupted_is_ended_by_the_next(
    interrupted: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between two steps of putting the new database in its place: `run` refuses, `doctor --salvage` ends it."""
    store = Store.create(tmp_path)
    store.append(STARTED, asked(0), *complete(0))
    store.close()
    damage(tmp_path, "DELETE FROM scores")

    class Killed(BaseException):
        pass

    def kill(*arguments: Any) -> None:
        raise Killed

    if interrupted == "replace":
        real = Path.replace
        monkeypatch.setattr(Path, "replace", lambda path, to: kill() if path.name == SALVAGED else real(path, to))
    else:
        monkeypatch.setattr(salvaging, interrupted, kill)
    with pytest.raises(Killed):
        mend(tmp_path)
    monkeypatch.undo()
    with pytest.raises(SearchError, match=r"a salvage of this run was interrupted.*doctor"):
        Store.open(tmp_path)
    assert examine(tmp_path).problems != []
    found = mend(tmp_path)
    assert found is not None and found.kept_at.name == f"{DATABASE}.damaged-1"
    assert [each.kind for each in events(tmp_path)] == ["run_started", "asked", "scored", "told", "salvaged"]
    assert [each.name for each in tmp_path.glob("run.db.*")] == [f"{DATABASE}.damaged-1"]


@pytest.mark.parametrize(("optimizer", "fidelity"), [("random", "off"), ("random", {"rungs": [60], "alpha": 0.3})])
def test_the_search_goes_on_and_finds_what_it_would_have_found(optimizer: str, fidelity: Any, tmp_path: Path) -> None:
    """With proposals that depend on nothing: every candidate, and every item score, is the undisturbed run's."""
    settings = config(optimizer, 24, fidelity)
    calm, struck = tmp_path / "calm", tmp_path / "struck"
    for folder in (calm, struck):
        folder.mkdir()
        store = Store.create(folder)
        store.append(STARTED)
        store.close()
    undisturbed = FakeWorker()
    start(calm, settings, undisturbed)
    start(struck, settings, FakeWorker())
    connection = sqlite3.connect(struck / DATABASE)
    last = connection.execute("SELECT max(seq) FROM events").fetchone()[0]
    chosen = sorted(np.random.default_rng(4).choice(np.arange(2, last), 7, replace=False).tolist())
    connection.close()
    damage(struck, *(spoil(seq) for seq in chosen), "DELETE FROM item_scores WHERE candidate IN (3, 17)")
    found = mend(struck)
    assert found is not None and 0 < found.lost.candidates_lost <= 9
    again = FakeWorker()
    start(struck, settings, again)
    assert len(again.evaluated) <= 3 * found.lost.candidates_lost < len(undisturbed.evaluated)
    told, asked_for, items, _ = content(struck)
    calm_told, calm_asked, calm_items, _ = content(calm)
    assert sorted(asked_for, key=lambda each: each[0]) == calm_asked
    assert sorted(each[0] for each in told) == list(range(24))
    if fidelity == "off":
        assert sorted(told, key=lambda each: each[0]) == calm_told
        assert items == calm_items
    assert examine(struck).problems == []


def test_an_optimizer_that_learns_goes_on_too(tmp_path: Path) -> None:
    settings = config("sms_emoa", 30, {"rungs": [60], "alpha": 0.3})
    store = Store.create(tmp_path)
    store.append(STARTED)
    store.close()
    start(tmp_path, settings, FakeWorker())
    damage(tmp_path, "DELETE FROM item_scores WHERE candidate IN (5, 25)", told_of(12))
    found = mend(tmp_path)
    assert found is not None and found.lost.candidates_lost == 3
    start(tmp_path, settings, FakeWorker())
    store = Store.open(tmp_path)
    told = sorted(each.candidate for each in store.events(Told) if isinstance(each, Told))
    store.close()
    assert told == list(range(30))
