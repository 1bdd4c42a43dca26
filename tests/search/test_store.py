"""The event log: what was appended is there, whole, in order, and nothing else is."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.contract import ItemScores
from search.errors import SearchError
from search.events import (
    EVENTS,
    Asked,
    BudgetSpent,
    Chosen,
    EvaluationStarted,
    Failed,
    FinalistsNamed,
    Finished,
    Incident,
    Interrupted,
    Opened,
    OptimizerNoted,
    Picked,
    Resumed,
    RungReached,
    RunStarted,
    Salvaged,
    Scored,
    Settled,
    StageBegun,
    Told,
)
from search.lock import RunLock, is_held
from search.optimizers.contract import Genome, Outcome
from search.store import DATABASE, Store
from search.store.payloads import event_of, payload_of

STARTED = RunStarted(
    {"name": "x"}, {"base": "sha256:0"}, {"base": "m"}, ["attention.0"], [], {}, "hf", 1, [3], [0.0, 0.0], {}
)


def item_scores(n: int = 3) -> ItemScores:
    return ItemScores(
        tuple(f"i{k}" for k in range(n)),
        {"accuracy": np.linspace(0.1, 0.9, n), "wer": np.arange(n, dtype=np.float64)},
        {"accuracy": np.ones(n), "wer": np.arange(n, dtype=np.float64) + 1},
        ("ok", "failed", "unscored")[:n] + ("ok",) * (n - 3),
    )


def test_every_kind_of_event_survives_the_log(tmp_path: Path) -> None:
    outcome = Outcome("complete", (0.25, 1 / 3), (0.01, float("inf")), 12, (0.5,), "why", 2)
    events = [
        STARTED,
        StageBegun(1, 0.25),
        OptimizerNoted(1, 3, {"took": "gp", "r2": 0.5}),
        Resumed(10, [1]),
        Asked(0, 1, Genome((0.1, 1 / 3), (2,)), "abc", "base"),
        EvaluationStarted(0, "selection"),
        RungReached(0, 0, 40, {"a.b": 0.1}, {"evaluate": 0.1}, 2, {"a.b": 3.5}, True),
        Scored(0, "search", {"a.b": 0.1}, {"a.b": 0.01}, {"evaluate": 0.5}, "w"),
        Failed(0, "search", "NaN"),
        Told(0, 1, outcome, {"optimize": 0.001}),
        FinalistsNamed([1, 2], [0]),
        Chosen(1, "knee"),
        Picked(2, "mix of a 1"),
        Opened([1, 0], "hash"),
        Interrupted("user"),
        Settled(0, outcome),
        Incident(0, "worker lost", "it ended", 3.0),
        BudgetSpent("hours", "8 of 8 hours"),
        Salvaged(2, 1, "events 4 and 5"),
        Finished(10, 0.5),
    ]
    assert {type(each) for each in events} == set(EVENTS.values())
    store = Store.create(tmp_path)
    for each in events:
        store.append(each)
    assert list(store.events()) == events
    assert list(store.events(Told, Chosen)) == [each for each in events if isinstance(each, Told | Chosen)]
    store.close()


@given(
    st.lists(st.floats(0, 1), max_size=5), st.lists(st.integers(0, 9), max_size=3), st.lists(st.floats(allow_nan=False))
)
def test_genomes_and_outcomes_round_trip_to_the_bit(
    values: list[float], choices: list[int], scores: list[float]
) -> None:
    for event in (
        Asked(3, 0, Genome(tuple(values), tuple(choices)), "h"),
        Told(3, 0, Outcome("censored", tuple(scores), tuple(scores))),
    ):
        assert event_of(event.kind, payload_of(event)) == event


def test_item_scores_come_back_bit_for_bit(tmp_path: Path) -> None:
    store = Store.create(tmp_path)
    scores = item_scores(5)
    store.append(Asked(0, 0, Genome(()), "h"))
    store.append(Scored(0, "search", {"a.accuracy": 0.5}, {"a.accuracy": 0.1}, {"evaluate": 1.0}, scores={"a": scores}))
    again = store.item_scores(0, "search")["a"]
    assert (again.ids, again.statuses) == (scores.ids, scores.statuses)
    for metric in scores.values:
        assert again.values[metric].tobytes() == scores.values[metric].tobytes()
        assert again.weights[metric].tobytes() == scores.weights[metric].tobytes()
    assert store.item_scores(0, "holdout") == {}
    assert store.scores("search") == {0: {"a.accuracy": (0.5, 0.1)}}
    assert store.seconds() == {(0, "search"): {"evaluate": 1.0}}


def test_a_refused_event_leaves_nothing_of_its_transaction(tmp_path: Path) -> None:
    store = Store.create(tmp_path)
    store.append(Asked(0, 0, Genome(()), "h"))
    with pytest.raises(SearchError, match="UNIQUE"):
        store.append(Chosen(0, "knee"), Asked(0, 0, Genome(()), "h"))
    assert [each.kind for each in store.events()] == ["asked"]
    store.append(Chosen(0, "knee"))
    assert [each.kind for each in store.events()] == ["asked", "chosen"]


def test_told_sets_the_candidates_state(tmp_path: Path) -> None:
    store = Store.create(tmp_path)
    outcomes = [Outcome("complete", (1.0,)), Outcome("failed", reason="NaN"), Outcome("duplicate", (1.0,), of=0)]
    for id, outcome in enumerate(outcomes):
        store.append(Asked(id, 0, Genome((0.5,)), "h"))
        store.append(Told(id, 0, outcome))
    store.append(Asked(3, 0, Genome((0.5,)), "h"))
    found = [(each.state, each.reason, each.duplicate_of) for each in store.candidates()]
    assert found == [("complete", "", None), ("failed", "NaN", None), ("duplicate", "", 0), ("running", "", None)]


def test_kill_dash_nine_inside_a_transaction_loses_only_that_one(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys
        from pathlib import Path
        from search.events import Asked, Chosen
        from search.optimizers.contract import Genome
        from search.store import Store
        store = Store.create(Path(sys.argv[1]))
        for id in range(5):
            store.append(Asked(id, 0, Genome((0.5,)), str(id)))
        store._connection.execute("BEGIN IMMEDIATE")
        store._connection.execute("INSERT INTO events VALUES (6, 0, 'chosen', NULL, '{}', '', x'', x'')")
        print("ready", flush=True)
        sys.stdin.read()
        """
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    process.stdin.close()
    store = Store.open(tmp_path)
    assert [each.id for each in store.candidates()] == [0, 1, 2, 3, 4]
    assert len(list(store.events())) == 5
    store.append(Chosen(0, "knee"))
    assert len(list(store.events())) == 6


def test_a_full_disk_is_reported_and_harmless(tmp_path: Path) -> None:
    store = Store.create(tmp_path)
    store.append(Asked(0, 0, Genome(()), "h"))
    # SQLite's own limit raises the very error of a full disk
    store._connection.execute(f"PRAGMA max_page_count={store._connection.execute('PRAGMA page_count').fetchone()[0]}")
    big = item_scores(20000)
    with pytest.raises(SearchError, match=r"full.*what was stored before is safe"):
        store.append(Scored(0, "search", {}, {}, {}, scores={"a": big}))
    assert [each.kind for each in store.events()] == ["asked"]
    store._connection.execute("PRAGMA max_page_count=1000000")
    store.append(Scored(0, "search", {}, {}, {}, scores={"a": big}))
    assert len(store.item_scores(0, "search")["a"]) == 20000


def test_what_is_no_run_is_said_to_be_none(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match="expected a run directory"):
        Store.open(tmp_path)
    (tmp_path / DATABASE).write_bytes(b"not a database at all, but long enough to have a header" * 20)
    with pytest.raises(SearchError, match="damaged"):
        Store.open(tmp_path, read_only=True)


def test_an_existing_database_is_never_overwritten(tmp_path: Path) -> None:
    Store.create(tmp_path).close()
    with pytest.raises(SearchError, match="expected no database"):
        Store.create(tmp_path)


def test_a_kill_while_it_is_made_leaves_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So a file without tables is a damaged one, never a new one."""

    class Killed(BaseException):
        pass

    def kill(path: Path, to: Path) -> None:
        raise Killed

    monkeypatch.setattr(Path, "replace", kill)
    with pytest.raises(Killed):
        Store.create(tmp_path)
    monkeypatch.undo()
    assert not (tmp_path / DATABASE).exists()
    Store.create(tmp_path).close()
    assert [each.name for each in tmp_path.iterdir()] == [DATABASE]


def test_another_format_is_refused(tmp_path: Path) -> None:
    Store.create(tmp_path).close()
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        connection.execute("UPDATE meta SET value = '99' WHERE key = 'format'")
    connection.close()
    with pytest.raises(SearchError, match="run format 1, 2 or 3, found '99'"):
        Store.open(tmp_path)


def test_readers_see_a_run_that_is_being_written(tmp_path: Path) -> None:
    writer = Store.create(tmp_path)
    reader = Store.open(tmp_path, read_only=True)
    for id in range(3):
        writer.append(Asked(id, 0, Genome(()), str(id)))
        assert len(reader.candidates()) == id + 1
    with pytest.raises(SearchError):
        reader.append(Chosen(0, "knee"))


def test_the_lock_names_its_holder_and_dies_with_it(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from search.lock import RunLock\n"
        "with RunLock(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "held\n"
    assert is_held(tmp_path)
    with pytest.raises(SearchError, match=rf"another process is writing .*pid {process.pid}"), RunLock(tmp_path):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    process.stdin.close()
    assert not is_held(tmp_path)
    with RunLock(tmp_path):
        assert is_held(tmp_path)
    assert not is_held(tmp_path)
