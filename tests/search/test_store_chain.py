"""What is changed behind the store's back is found, named, and never read as if nothing had been."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.contract import SPLITS, ItemScores
from search.errors import SearchError
from search.events import Asked, Chosen, Event, Failed, RungReached, RunStarted, Scored, Told
from search.optimizers.contract import Genome, Outcome
from search.store import DATABASE, Store
from search.store.digests import GENESIS, SIZE, chained, sealed

STARTED = RunStarted({}, {"base": "sha256:0"}, {}, [], [], {}, "hf", 1, [], [0.0], {})


def scores(n: int, seed: int) -> dict[str, ItemScores]:
    values = np.random.default_rng(seed).random(n)
    ids = tuple(f"i{k}" for k in range(n))
    return {"a": ItemScores(ids, {"accuracy": values}, {"accuracy": np.ones(n)}, ("ok",) * n)}


def written(folder: Path, candidates: int = 3) -> Store:
    """A log with every kind of row: candidates that climbed, one that failed, a decision."""
    store = Store.create(folder)
    store.append(STARTED)
    for id in range(candidates):
        store.append(Asked(id, 0, Genome((0.25 * id, 0.5)), f"hash {id}"))
        store.append(RungReached(id, 0, 2, {"a.accuracy": 0.5}, {"evaluate": 0.25}, scores=scores(2, id)))
        store.append(
            Scored(id, "search", {"a.accuracy": 0.5}, {"a.accuracy": 0.125}, {"evaluate": 0.5}, "", [0.5],
                   scores=scores(4, id)),
            Told(id, 0, Outcome("complete", (0.5,), (0.125,), 4), {"store": 0.5}),
        )  # fmt: skip
    store.append(Asked(candidates, 0, Genome(()), "hash of the failed one"))
    store.append(Failed(candidates, "search", "NaN"), Told(candidates, 0, Outcome("failed", reason="NaN")))
    store.append(Chosen(0, "knee"))
    return store


def change(folder: Path, *statements: str) -> None:
    connection = sqlite3.connect(folder / DATABASE)
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


CHANGES = [  # SQL, and what is then said
    ("UPDATE events SET payload = replace(payload, '0.5', '0.9') WHERE seq = 2", r"event 2 \(asked of candidate 0\)"),
    ("UPDATE events SET at = at + 1 WHERE seq = 5", r"event 5 \(told of candidate 0\) is not as it was written"),
    ("UPDATE events SET candidate = 1 WHERE seq = 3", r"event 3 \(rung_reached of candidate 1\) is not"),
    ("UPDATE events SET kind = 'picked' WHERE kind = 'chosen'", r"event 17 \(picked of candidate 0\)"),
    ("UPDATE events SET items = '' WHERE seq = 4", r"event 4 \(scored of candidate 0\) is not as it was written"),
    ("UPDATE events SET previous = zeroblob(16) WHERE seq = 7", r"event 7 .* does not follow the one before"),
    ("UPDATE events SET payload = CAST(x'ff' AS TEXT) WHERE seq = 6", r"damaged"),
    ("DELETE FROM events WHERE seq = 8", r"events 8 to 8 are not there"),
    ("UPDATE candidates SET state = 'failed' WHERE id = 2", r"table candidates is not what .*candidate 2"),
    ("DELETE FROM candidates WHERE id = 1", r"table candidates is not .*candidate 1"),
    ("UPDATE scores SET value = 1.0 WHERE candidate = 1", r"table scores is not .*candidate 1"),
    ("INSERT INTO timings VALUES (0, 'search', 'tea', 1.0)", r"table timings is not .*candidate 0"),
    ("DELETE FROM violations WHERE candidate = 2", r"table violations is not .*candidate 2"),
    ("DELETE FROM item_scores WHERE candidate = 1", r"item scores of candidate 1 \(search, a\) are not there"),
    ("UPDATE item_scores SET scores = weights WHERE candidate = 2", r"candidate 2 \(search, a\) are not as they were"),
    ("UPDATE item_scores SET statuses = x'01010101' WHERE candidate = 0", r"candidate 0 \(search, a\) are not as they"),
    ("UPDATE item_sets SET ids = replace(ids, 'i0', 'i9')", r"item set .* is not what its hash says"),
    ("UPDATE meta SET value = replace(value, '\"hf', '\"hg') WHERE key = 'beginning'", r"second copy .* cannot"),
    ("UPDATE meta SET value = '[]' WHERE key LIKE 'item set%'", r"second copies of the item sets are others"),
    ("DROP INDEX candidates_by_hash", r"INDEX candidates_by_hash is not there"),
    ("CREATE TRIGGER t AFTER INSERT ON events BEGIN DELETE FROM scores; END", r"trigger t does not belong there"),
    ("CREATE VIEW v AS SELECT load_extension('x')", r"view '?v'? does not belong there"),
    ("DROP TABLE timings", r"TABLE timings is not there"),
]  # fmt: skip


@pytest.mark.parametrize(("statement", "named"), CHANGES, ids=[statement[:48] for statement, _ in CHANGES])
def test_a_changed_row_is_named_when_the_run_is_opened_for_writing(statement: str, named: str, tmp_path: Path) -> None:
    written(tmp_path).close()
    change(tmp_path, statement)
    with pytest.raises(SearchError, match=rf"(?s){named}.*doctor {tmp_path} --salvage"):
        Store.open(tmp_path)


def test_item_scores_that_are_another_candidates_are_not_taken(tmp_path: Path) -> None:
    """A row that is whole by itself, but is not the one that its event announced."""
    written(tmp_path).close()
    connection = sqlite3.connect(tmp_path / DATABASE)
    row = connection.execute("SELECT * FROM item_scores WHERE candidate = 1").fetchone()
    forged = sealed(0, *row[1:8])
    with connection:
        connection.execute("DELETE FROM item_scores WHERE candidate = 0")
        connection.execute("INSERT INTO item_scores VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", forged)
    connection.close()
    with pytest.raises(SearchError, match=r"candidate 0 .* are not those that their event names"):
        Store.open(tmp_path)


@pytest.mark.parametrize(("statement", "named"), CHANGES[:8], ids=[statement[:48] for statement, _ in CHANGES[:8]])
def test_readers_stop_at_a_changed_event(statement: str, named: str, tmp_path: Path) -> None:
    written(tmp_path).close()
    change(tmp_path, statement)
    reader = Store.open(tmp_path, read_only=True)
    if "DELETE" in statement or "previous" in statement:
        # each row is still as it was written, or at least says so itself: the gap is for the writer to find
        reader.close()
        return
    with pytest.raises(SearchError, match="damaged"):
        list(reader.events())
    reader.close()


def test_readers_stop_at_changed_item_scores_and_give_the_others(tmp_path: Path) -> None:
    written(tmp_path).close()
    change(tmp_path, "UPDATE item_scores SET scores = zeroblob(32) WHERE candidate = 1")
    reader = Store.open(tmp_path, read_only=True)
    assert (
        reader.item_scores(0, "search")["a"].values["accuracy"].tolist()
        == scores(4, 0)["a"].values["accuracy"].tolist()
    )
    with pytest.raises(SearchError, match=r"item scores of candidate 1 \(search, a\) are not as they were written"):
        reader.item_scores(1, "search")
    reader.close()


def test_an_intact_run_opens_however_often(tmp_path: Path) -> None:
    store = written(tmp_path)
    events = list(store.events())
    store.close()
    for _ in range(3):
        store = Store.open(tmp_path)
        assert list(store.events()) == events
        store.append(Chosen(1, "again"))
        events.append(Chosen(1, "again"))
        store.close()


def test_the_log_is_read_in_batches_and_whole(tmp_path: Path) -> None:
    store = Store.create(tmp_path)
    events: list[Event] = [Chosen(id, "") if id % 3 else Failed(id, "search", "x") for id in range(1201)]
    store.append(*events)
    assert list(store.events()) == events
    assert list(store.events(Failed)) == [each for each in events if isinstance(each, Failed)]
    # somebody who reads does not hold back somebody who writes, nor miss what is written meanwhile
    reading = store.events()
    first = next(reading)
    store.append(Chosen(9999, "last"))
    assert [first, *reading] == [*events, Chosen(9999, "last")]
    store.close()


OLD = Path(__file__).parent / "data" / "run_format_1"


def test_an_old_run_becomes_one_with_digests_and_stays_what_it_was(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(OLD, tmp_path / "run"))

    def everything() -> list[object]:
        store = Store.open(folder, read_only=True)
        candidates = store.candidates()
        items = [
            (each.id, name, found.ids, found.statuses, [values.tobytes() for values in found.values.values()])
            for each in candidates
            for split in SPLITS
            for name, found in store.item_scores(each.id, split).items()
        ]
        tables = [[store.scores(split), store.violations(split)] for split in SPLITS]
        log = [each.payload() for each in store.events()]
        result = [candidates, items, tables, log, store.times(), store.seconds()]
        store.close()
        return result

    before = everything()
    assert len(before[1]) > 40  # type: ignore[arg-type]
    Store.open(folder).close()
    assert everything() == before
    Store.open(folder).close()  # verified, as any other
    change(folder, "UPDATE item_scores SET statuses = weights WHERE candidate = 3")
    with pytest.raises(SearchError, match="item scores of candidate 3"):
        Store.open(folder)


def test_an_upgrade_that_does_not_end_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(OLD, tmp_path / "run"))
    connection = sqlite3.connect(folder / DATABASE)
    before = list(connection.iterdump())
    connection.close()

    def fail(self: Store) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(Store, "_take_over", fail)
    with pytest.raises(SearchError, match="disk is full"):
        Store.open(folder)
    connection = sqlite3.connect(folder / DATABASE)
    assert list(connection.iterdump()) == before
    connection.close()


blobs = st.binary(max_size=40)
texts = st.text(max_size=20)


@settings(max_examples=40)
@given(
    st.tuples(st.integers(1, 9), st.floats(0, 9), texts, st.none() | st.integers(0, 9), texts, texts),
    st.tuples(st.integers(1, 9), st.floats(0, 9), texts, st.none() | st.integers(0, 9), texts, texts),
)
def test_two_different_events_have_two_digests(one: tuple, other: tuple) -> None:  # type: ignore[type-arg]
    first, second = chained(*one, GENESIS), chained(*other, GENESIS)
    assert (first.digest == second.digest) == (repr(one) == repr(other))
    assert first.intact and second.intact
    assert chained(*one, b"x" * SIZE).digest != first.digest


@settings(max_examples=40)
@given(st.lists(blobs, min_size=3, max_size=3), st.lists(blobs, min_size=3, max_size=3), texts, texts)
def test_two_different_scores_have_two_digests(one: list[bytes], other: list[bytes], left: str, right: str) -> None:
    first = sealed(0, "search", left, right, "[]", *one)
    second = sealed(0, "search", left, right, "[]", *other)
    assert (first.digest == second.digest) == (one == other)
    # bytes that move from one column to the next are other scores
    assert left == "" or sealed(0, "search", left[:-1], left[-1] + right, "[]", *one).digest != first.digest
