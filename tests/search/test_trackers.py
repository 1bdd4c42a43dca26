"""Trackers show every candidate once, in order, whatever was interrupted; the files are read back with the readers
that TensorBoard and W&B use themselves."""

from __future__ import annotations

import importlib.util
import json
import random
import struct
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest

from search import pareto
from search.errors import SearchError
from search.events import Asked, Event, Finished, Interrupted, Resumed, RunStarted, Scored, Told
from search.optimizers.contract import Genome, Outcome
from search.results import Results
from search.schema import Config
from search.store import Store
from search.trackers import Mirror, mirror, open_trackers
from search.trackers.mirror import FrontTable, Row
from search.trackers.tensorboard import markdown, written_steps

OBJECTIVES = [
    {"name": f"{name}.accuracy", "direction": "maximize", "low": 0.0, "high": 1.0, "expert": name, "unit": ""}
    for name in "ab"
]
CONFIG = Config.model_validate(
    {
        "name": "x",
        "models": {"base": "base", "experts": {"a": "a", "b": "b"}},
        "evaluators": {name: {"type": "exact_match", "data": name} for name in "ab"},
        "objectives": [each["name"] for each in OBJECTIVES],
        "search": {"budget": {"candidates": 40}},
    }
)
STARTED = RunStarted(
    CONFIG.model_dump(mode="json"), {"base": "0"}, {"base": "m"}, ["attention.0"], OBJECTIVES, {}, "hf", 1, [3],
    [0.0, 0.0], {},
)  # fmt: skip
TABLE = FrontTable(["candidate", "label", "chosen", "a (search)"], [[3, "x|y", True, 0.25], [4, "", False, None]])


def outcome(id: int) -> Outcome:
    """Some fail, some are stopped, some break a constraint: all decided by the id."""
    chance = random.Random(id)
    if id % 7 == 3:
        return Outcome("failed", reason="NaN")
    if id % 7 == 5:
        return Outcome("censored", (0.9, 0.9), (0.1, 0.1), 40, reason="dominated by candidate 0")
    return Outcome("complete", (chance.random(), chance.random()), (0.1, 0.2), 100, (0.5 if id % 5 == 4 else -1.0,))


def events_of(id: int) -> list[Event]:
    found = outcome(id)
    told = Told(id, 1, found, {"optimize": 0.5, "store": 0.25})
    if found.state != "complete":
        return [told]
    values = {f"{name}.accuracy": value for name, value in zip("ab", found.utilities, strict=True)} | {"a.length": 7.0}
    return [Scored(id, "search", values, dict.fromkeys(values, 0.125), {"evaluate": 2.0}), told]


class Recorder:
    """A sink that keeps what it is told across lives, as files would."""

    def __init__(self, rows: dict[int, Row], log: list[Any]) -> None:
        self.rows, self.log = rows, log

    def open(self, started: RunStarted, told: Collection[int]) -> int:
        self.log.append(("open", started.objectives == OBJECTIVES))
        return max(self.rows, default=-1) + 1

    def write(self, row: Row) -> None:
        assert row.candidate == max(self.rows, default=-1) + 1
        self.rows[row.candidate] = row

    def finish(self, table: FrontTable, last: int) -> None:
        self.log.append(("finish", table, last))

    def flush(self) -> None:
        self.log.append("flush")

    def close(self) -> None:
        self.log.append("close")


def lives(folder: Path, order: list[int], chance: random.Random) -> tuple[dict[int, Row], list[Any]]:
    """A run whose candidates are told in an order, killed between the log and the tracker now and then."""
    rows: dict[int, Row] = {}
    log: list[Any] = []
    store = Store.create(folder)
    store.append(STARTED)
    tracker = Mirror(folder, lambda: Recorder(rows, log))
    tracker.on(STARTED)
    for id in order:
        happened = events_of(id)
        store.append(Asked(id, 1, Genome((0.5,)), f"hash {id}"), *happened)
        if chance.random() < 0.3:
            tracker = Mirror(folder, lambda: Recorder(rows, log))
            happened = [Resumed(len(order))]
            store.append(*happened)
        for event in happened:
            tracker.on(event)
    store.close()
    return rows, log


@pytest.mark.parametrize("seed", range(4))
def test_every_candidate_is_shown_once_and_in_order(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    order = sorted(range(40), key=lambda id: id + 6 * chance.random())  # a fleet's order of arrival
    rows, _ = lives(tmp_path, order, chance)
    assert list(rows) == list(range(40))
    points = []
    counts = dict.fromkeys(("complete", "censored", "failed", "duplicate"), 0)
    for id, row in rows.items():
        found = outcome(id)
        counts[found.state] += 1
        if found.state == "complete" and found.feasible:
            points.append(found.utilities)
        assert (row.state, row.counts) == (found.state, counts)
        assert row.hypervolume == pytest.approx(pareto.hypervolume(points, (0.0, 0.0)), abs=1e-12)
        assert row.front == int(pareto.nondominated(points).sum() if points else 0)
        if found.state == "complete":
            assert row.values == {"a.accuracy": found.utilities[0], "b.accuracy": found.utilities[1], "a.length": 7.0}
            assert row.seconds == {"evaluate": 2.0, "optimize": 0.5, "store": 0.25}


def test_who_is_missing_holds_later_ones_back_until_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "front_table", lambda folder: TABLE)
    rows, log = lives(tmp_path, [0, 1, 3, 4], random.Random(1))
    assert list(rows) == [0, 1]
    store = Store.open(tmp_path)
    store.append(Finished(5, 0.5))
    store.close()

    class Skipping(Recorder):
        def write(self, row: Row) -> None:
            self.rows[row.candidate] = row

    tracker = Mirror(tmp_path, lambda: Skipping(rows, log))
    tracker.on(Finished(5, 0.5))
    assert list(rows) == [0, 1, 3, 4]
    assert log[-2:] == [("finish", TABLE, 4), "flush"]
    tracker.close()
    tracker.close()
    assert log[-1:] == ["close"]


def begin(folder: Path) -> Store:
    store = Store.create(folder)
    store.append(STARTED)
    return store


def live(store: Store, tracker: Mirror, ids: Collection[int]) -> None:
    for id in ids:
        happened = events_of(id)
        store.append(Asked(id, 1, Genome((0.5,)), f"hash {id}"), *happened)
        for event in happened:
            tracker.on(event)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """tag -> (step, value), as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    return {tag: [(each.step, each.value) for each in found.Scalars(tag)] for tag in found.Tags()["scalars"]}


needs_tensorboard = pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="no tensorboard")
needs_wandb = pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="no wandb")


@needs_tensorboard
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_after_interruptions_and_a_new_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "front_table", lambda folder: TABLE)
    (tmp_path / "run").mkdir()
    folder = tmp_path / "run"
    store = begin(folder)
    (tracker,) = open_trackers({"tensorboard": {}}, folder, CONFIG)
    live(store, tracker, [0, 1, 3])
    tracker.on(Interrupted("stopped by the user"))
    assert written_steps(folder / "tensorboard") == {0, 1}
    (file,) = (folder / "tensorboard").iterdir()
    torn = file.read_bytes()[:-9]
    tracker.close()
    file.write_bytes(torn)  # kill -9 in the middle of a record

    (tracker,) = open_trackers({"tensorboard": {"flush_seconds": 1}}, folder, CONFIG)
    store.append(Resumed(40))
    tracker.on(Resumed(40))
    live(store, tracker, [2, 4, 5, 6, 7])
    store.append(Finished(8, 0.5))
    tracker.on(Finished(8, 0.5))
    tracker.close()
    found = scalars(folder)
    assert [step for step, _ in found["search/hypervolume"]] == list(range(8))
    complete = [id for id in range(8) if outcome(id).state == "complete"]
    assert found["objective/a.accuracy"] == [(id, pytest.approx(outcome(id).utilities[0])) for id in complete]
    assert found["error/b.accuracy"] == [(id, 0.125) for id in complete]
    assert found["metric/a.length"] == [(id, 7.0) for id in complete]
    assert [value for _, value in found["candidates/failed"]] == [0, 0, 0, 1, 1, 1, 1, 1]

    # another run under the old name: what the files say of the old one is forgotten
    store.close()
    for each in folder.glob("run.db*"):
        each.unlink()
    store = begin(folder)
    (tracker,) = open_trackers({"tensorboard": {}}, folder, CONFIG)
    tracker.on(STARTED)
    live(store, tracker, [0, 1, 2])
    tracker.close()
    store.close()
    assert [step for step, _ in scalars(folder)["search/hypervolume"]] == [0, 1, 2]


def test_the_front_as_markdown() -> None:
    assert markdown(TABLE).splitlines() == [
        "| candidate | label | chosen | a (search) |",
        "|---|---|---|---|",
        "| 3 | x\\|y | yes | 0.2500 |",
        "| 4 |  |  |  |",
    ]


def records(data: bytes) -> Iterator[bytes]:
    """What lies in a .wandb file: LevelDB's log format after seven bytes of their own."""
    place, parts = 7, b""
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole one, or the last part of one
            yield parts
            parts = b""


def history(folder: Path) -> list[dict[str, Any]]:
    """What lies in W&B's offline files, oldest first."""
    from wandb.proto import wandb_internal_pb2

    rows = []
    for path in sorted((folder / "wandb").glob("offline-run-*/run-*.wandb")):
        for record in records(path.read_bytes()):
            parsed = wandb_internal_pb2.Record.FromString(record)
            if parsed.HasField("history"):
                items = parsed.history.item
                rows.append({each.key or each.nested_key[0]: json.loads(each.value_json) for each in items})
    return rows


@needs_wandb
@pytest.mark.slow  # W&B's own process takes seconds to start
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_wandb_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "front_table", lambda folder: TABLE)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    store = begin(tmp_path)
    (tracker,) = open_trackers({"wandb": {"project": "p", "tags": ["t"]}}, tmp_path, CONFIG)
    live(store, tracker, [0, 1, 3])
    tracker.close()
    first = json.loads((tmp_path / "wandb" / "run.json").read_text())
    assert first["next"] == 2
    (tracker,) = open_trackers({"wandb": {"project": "p"}}, tmp_path, CONFIG)
    live(store, tracker, [2, 4])
    store.append(Finished(5, 0.5))
    tracker.on(Finished(5, 0.5))
    tracker.close()
    store.close()
    assert json.loads((tmp_path / "wandb" / "run.json").read_text()) == {"id": first["id"], "next": 5}
    rows = history(tmp_path)
    assert [(row["_step"], row["candidate"], row["state"]) for row in rows] == [
        (id, id, outcome(id).state) for id in range(5)
    ]
    assert rows[4]["objective/a.accuracy"] == pytest.approx(outcome(4).utilities[0])


@needs_wandb
def test_an_unreadable_bookmark_is_a_new_run(tmp_path: Path) -> None:
    from search.trackers.wandb import WandbOptions, WandbSink

    (tmp_path / "wandb").mkdir()
    bookmark = tmp_path / "wandb" / "run.json"
    for text, told, expected in (
        ('{"id": "abc", "next": 3}', {0, 1, 2, 5}, ("abc", 3)),
        ('{"id": "abc", "next": 3}', {0}, None),  # of an older log
        ('{"id": "../abc", "next": 1}', {0}, None),
        ('{"id": "abc"', {0}, None),
        ("[]", {0}, None),
    ):
        bookmark.write_text(text)
        sink = WandbSink(tmp_path, CONFIG, WandbOptions())
        first = sink._read_bookmark(told)
        if expected is None:
            assert first == 0
            assert sink._id.isalnum()
            assert sink._id != "abc"
        else:
            assert (sink._id, first) == expected


@pytest.mark.parametrize(
    ("trackers", "says"),
    [
        ({"wandb": {"mode": "sometimes"}}, "wandb: mode"),
        ({"tensorboard": {"folder": "/etc"}}, "the options are flush_seconds"),
        ({"mlflow": {}}, "tensorboard or wandb"),
    ],
)
def test_wrong_options_are_named(tmp_path: Path, trackers: dict[str, Any], says: str) -> None:
    with pytest.raises(SearchError, match=says):
        open_trackers(trackers, tmp_path, CONFIG)


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else find(name, *rest))
    with pytest.raises(SearchError, match=r"pip install 'paretomerge\[trackers\]'"):
        open_trackers({"wandb": {}}, tmp_path, CONFIG)


def test_opening_imports_and_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wandb", "tensorboard"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    open_trackers({name: {} for name in ("wandb", "tensorboard") if importlib.util.find_spec(name)}, tmp_path, CONFIG)
    assert not {"wandb", "tensorboard"} & set(sys.modules)
    assert not list(tmp_path.iterdir())


def test_the_front_of_a_real_run(synthetic_run: Any, tmp_path: Path) -> None:
    results: Results = synthetic_run(tmp_path)
    table = mirror.front_table(results.folder)
    assert [row[0] for row in table.rows] == results.front
    assert [row[0] for row in table.rows if row[2]] == [results.chosen]
    place = table.columns.index(f"{results.objectives.names[0]} (selection)")
    for row in table.rows:
        assert isinstance(row[0], int)
        assert row[place] == results.values(row[0], "selection")[results.objectives.names[0]]
