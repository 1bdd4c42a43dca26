"""Run directories of strangers: databases that are none, that do things, or say what cannot be."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attacking import Attack, Payload, Trap, assert_shows_only
from small_models import small_project

from search.cli import run_command
from search.store.digests import GENESIS, EventRow, chained

pytestmark = pytest.mark.slow  # every test needs a finished run, and several commands over it

RUN = "runs/attacked"
READING = (("status", RUN), ("status", RUN, "--json", "--candidates"), ("report", RUN))
ALL = (
    *READING,
    ("choose", RUN),
    ("export", RUN, "--knee", "--out", "out"),
    ("run", "search.yaml", "--display", "plain"),
)

Change = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="session")
def finished(warmed: object, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a finished run in it; copied, never changed."""
    folder, before = tmp_path_factory.mktemp("finished"), Path.cwd()
    os.chdir(folder)
    try:
        small_project()
        with contextlib.redirect_stdout(None):
            assert run_command(["run", "search.yaml", "--display", "none"]) == 0
    finally:
        os.chdir(before)
    return folder


@pytest.fixture
def database(attack: Attack, finished: Path) -> Path:
    """A database of a finished run in the working directory."""
    shutil.copytree(finished, Path.cwd(), dirs_exist_ok=True)
    return Path(RUN) / "run.db"


def rewrite(database: Path, change: Callable[[EventRow], EventRow]) -> None:
    """Change rows of the log, and make the chain of digests fit: what damage never does."""
    connection = sqlite3.connect(database)
    rows = connection.execute(
        "SELECT seq, at, kind, candidate, payload, items, previous, digest FROM events"
    ).fetchall()
    previous = GENESIS
    for row in map(change, map(EventRow._make, rows)):
        made = chained(row.seq, row.at, row.kind, row.candidate, row.payload, row.items, previous)
        previous = made.digest
        values = (made.payload, made.items, made.previous, made.digest, made.seq)
        connection.execute("UPDATE events SET payload = ?, items = ?, previous = ?, digest = ? WHERE seq = ?", values)
    connection.commit()
    connection.close()


def forge(database: Path, kind: str, change: Change) -> None:
    """Change the payloads of a kind of event."""

    def changed(row: EventRow) -> EventRow:
        payload = json.loads(row.payload)
        if row.kind == kind:
            change(payload)
        return row._replace(payload=json.dumps(payload))

    rewrite(database, changed)


def run_sql(database: Path, *statements: str) -> None:
    connection = sqlite3.connect(database)
    for each in statements:
        connection.execute(each)
    connection.commit()
    connection.close()


ENDLESS = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n)"
SCHEMAS = {
    "a trigger": ["CREATE TRIGGER t AFTER INSERT ON events BEGIN DELETE FROM candidates; END"],
    "a view for the log": [
        "ALTER TABLE events RENAME TO kept",
        f"CREATE VIEW events AS {ENDLESS} SELECT x AS seq, 0.0 AS at, 'told' AS kind, 0 AS candidate, "
        "'{}' AS payload, '' AS items, x'' AS previous, x'' AS digest FROM n",
    ],
    "a view for the format": [
        "ALTER TABLE meta RENAME TO kept",
        f"CREATE VIEW meta AS {ENDLESS} SELECT 'format' AS key, '3' AS value FROM n WHERE x < 0",
    ],
    "a generated column": [
        "DROP TABLE scores",
        "CREATE TABLE scores (candidate INTEGER, split TEXT, metric TEXT, value REAL, error REAL, "
        "more AS (hex(zeroblob(900000000))))",
    ],
    "one more table": ["CREATE TABLE payload (code BLOB)"],
    "a virtual table": ["CREATE VIRTUAL TABLE payload USING fts5(x)"],
}  # fmt: skip


@pytest.mark.parametrize("kind", SCHEMAS)
def test_schemas_with_something_in_them_are_refused(attack: Attack, database: Path, kind: str) -> None:
    run_sql(database, *SCHEMAS[kind])
    for command in ALL:
        assert "run.db" in attack(*command).refusal


def test_pickles_in_a_database_stay_what_they_are(attack: Attack, database: Path, trap: Trap) -> None:
    """In blobs and in texts; in an old file's protocol and in today's."""
    for protocol in (0, 5):
        payload = pickle.dumps(Payload(trap.code), protocol).hex()
        run_sql(
            database,
            f"UPDATE item_scores SET scores = x'{payload}', weights = x'{payload}', statuses = x'{payload}'",
            f"UPDATE candidates SET reason = CAST(x'{payload if protocol == 0 else ''}' AS TEXT)",
            f"UPDATE meta SET value = CAST(x'{payload if protocol == 0 else ''}' AS TEXT) WHERE key <> 'format'",
        )
        for command in ALL:
            outcome = attack(*command)
            trap.assert_untouched()
            assert outcome.code == 0 or outcome.refusal


def test_what_is_no_database(attack: Attack, database: Path, trap: Trap) -> None:
    for content in (b"", b"SQLite format 3\0" + b"\xff" * 4096, pickle.dumps(Payload(trap.code))):
        database.write_bytes(content)
        for command in READING:
            assert attack(*command).refusal
    database.unlink()
    os.mkfifo(database)
    assert attack("status", RUN).refusal
    trap.assert_untouched()


def set_to(*path: str | int, value: Any) -> Change:
    def change(payload: dict[str, Any]) -> None:
        place: Any = payload
        for each in path[:-1]:
            place = place[each]
        if path:
            place[path[-1]] = value

    return change


STORIES: dict[str, tuple[str, Change]] = {
    "config is a text": ("run_started", set_to("config", value="x")),
    "config has no budget": ("run_started", set_to("config", "search", value={})),
    "config has a budget of a googol": (
        "run_started",
        set_to("config", "search", "budget", "candidates", value=10**100),
    ),
    "objectives without ranges": ("run_started", set_to("objectives", value=[{"name": "one.accuracy"}])),
    "no objectives": ("run_started", set_to("objectives", value=[])),
    "objectives upside down": ("run_started", set_to("objectives", 0, "low", value=5.0)),
    "other objectives": ("run_started", set_to("objectives", 0, "name", value="two.accuracy")),
    "metrics without ranges": ("run_started", set_to("metrics", value={"one.accuracy": {}})),
    "items that are a number": ("run_started", set_to("items", value=3)),
    "constraints": ("run_started", set_to("constraints", value=[{"name": "one.accuracy"}])),
    "groups": ("run_started", set_to("groups", value=["../../x"])),
    "no base": ("run_started", set_to("sources", value={})),
    "a candidate of no stage": ("asked", set_to("stage", value=99)),
    "genome of texts": ("asked", set_to("genome", value={"values": ["x"], "categories": []})),
    "genome of nothing": ("asked", set_to("genome", value={"values": [], "categories": []})),
    "genome of a million": ("asked", set_to("genome", value={"values": [0.5] * 100_000, "categories": [7] * 1000})),
    "told of a list": ("told", set_to("outcome", value=[])),
    "told of a large number": ("told", set_to("outcome", "items", value=10**400)),
    "told of another word": ("told", set_to("outcome", "state", value="won")),
    "finalists that there are not": ("finalists_named", set_to("finalists", value=[10**6])),
    "chosen nobody": ("chosen", set_to("candidate", value=-1)),
    "finished with a text": ("finished", set_to("budget", value="x")),
    "one field more": ("told", set_to("__class__", value="os.system")),
    "holdout of nobody": ("opened", set_to("candidates", value=["x"])),
}


@pytest.mark.parametrize("story", STORIES)
def test_logs_that_say_what_cannot_be(attack: Attack, database: Path, story: str) -> None:
    forge(database, *STORIES[story])
    for command in ALL:
        outcome = attack(*command)
        assert outcome.code == 0 or outcome.refusal, command


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize("kind", ["run_started", "scored"])
@pytest.mark.parametrize("column", ["payload", "items"])
@pytest.mark.parametrize("text", [DEEP, "[]", "3", '{"one": 3}'])
def test_logs_of_other_texts(attack: Attack, database: Path, kind: str, column: str, text: str) -> None:
    rewrite(database, lambda row: row._replace(**{column: text}) if row.kind == kind else row)
    for command in (*READING, ("run", "search.yaml", "--display", "plain"), ("doctor", RUN)):
        outcome = attack(*command)
        assert outcome.code in (0, 2), outcome.err
    outcome = attack("doctor", RUN, "--salvage")
    assert outcome.code == 0 or outcome.refusal


EVIL = "\x1b]0;owned\x07\x1b[2J\u202e</script><script>alert(1)</script><img src=x onerror=alert(2)>[/red][link=nowhere]"


def test_what_a_log_says_is_shown_and_not_obeyed(attack: Attack, database: Path) -> None:
    forge(database, "asked", set_to("label", value=EVIL))
    forge(database, "chosen", set_to("rule", value=EVIL))
    run_sql(database, f"UPDATE candidates SET label = '{EVIL}', reason = '{EVIL}'")
    for command in READING:
        outcome = attack(*command)
        assert outcome.code == 0, outcome.err
        assert_shows_only(outcome.out + outcome.err)
    page = (Path(RUN) / "report.html").read_text()
    assert "<script>alert" not in page and "<img src=x" not in page


@pytest.mark.parametrize("name", ["environment.json", "config.yaml", "resolved.yaml", "../holdouts.jsonl"])
@pytest.mark.parametrize("content", ["", "[" * 200_000, '{"packages": 3}', "\0", EVIL, "[1]\n"])
def test_files_beside_the_database(attack: Attack, database: Path, name: str, content: str) -> None:
    (Path(RUN) / name).write_text(content)
    for command in (*READING, ("choose", RUN)):
        outcome = attack(*command)
        assert outcome.code == 0 or outcome.refusal, command


@pytest.mark.parametrize("name", ["report.html", "environment.json", "config.yaml", "run.lock", ".lock", "run.db-wal"])
def test_links_in_a_run_directory_are_not_written_through(
    attack: Attack, database: Path, trap: Trap, name: str
) -> None:
    (Path(RUN) / name).unlink(missing_ok=True)
    (Path(RUN) / name).symlink_to(trap.secret)
    for command in ALL[:-1]:
        attack(*command)
        trap.assert_untouched()
    attack("run", "search.yaml", "--display", "plain", "--set", "search.budget.candidates=6")
    trap.assert_untouched()


@pytest.mark.parametrize(
    "name", ["run.db", "run.db-wal", "environment.json", "config.yaml", "resolved.yaml", "../holdouts.jsonl"]
)
def test_a_prepared_folder_does_not_lead_a_new_run_out_of_it(attack: Attack, trap: Trap, name: str) -> None:
    small_project()
    Path(RUN).mkdir(parents=True)
    target = trap.secret if name != "run.db" else trap.mark.parent / "elsewhere.db"
    (Path(RUN) / name).symlink_to(target)
    outcome = attack("run", "search.yaml", "--display", "none")
    assert outcome.code == 0 or outcome.refusal
    trap.assert_untouched()
    assert [each.name for each in trap.mark.parent.iterdir()] == [trap.secret.name]


def test_a_run_that_is_a_link_to_elsewhere(attack: Attack, trap: Trap) -> None:
    small_project()
    Path("runs").mkdir()
    Path(RUN).symlink_to(trap.secret)
    assert attack("run", "search.yaml").refusal
    trap.assert_untouched()


@pytest.mark.parametrize("name", ["../x", "..", "a/b", "x" * 300, "a\nb", "\x1b[2J", "/x", "a\0b"])
def test_names_of_runs_stay_inside(attack: Attack, name: str, tmp_path: Path) -> None:
    small_project()
    before = sorted(each.name for each in tmp_path.iterdir())
    if "\0" in name:  # no shell can say that
        Path("search.yaml").write_text(Path("search.yaml").read_text().replace("attacked", r'"a\0b"'))
        assert attack("run", "search.yaml").refusal
    else:
        assert attack("run", "search.yaml", "--name", name).refusal
        Path("search.yaml").write_text(Path("search.yaml").read_text().replace("attacked", json.dumps(name)))
        assert attack("run", "search.yaml").refusal
    assert {"stdout", "stderr", *before} == {each.name for each in tmp_path.iterdir()}
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


METHOD = """
from merging.methods import Elementwise, Needs
{code}

class Mine(Elementwise):
    pass
"""


def test_reading_a_run_runs_no_code_that_came_with_it(attack: Attack, database: Path, trap: Trap) -> None:
    """A plug-in that a stranger's run names, where it lies in the run's own folder: one that is guessed is found."""
    plug_in = Path(RUN) / "method.py"
    plug_in.write_text(METHOD.format(code=trap.code))
    forge(database, "run_started", set_to("config", "space", "methods", value=[f"{plug_in}:Mine"]))
    for command in READING:
        assert attack(*command).code == 0
        trap.assert_untouched()
    assert "would run the code of" in (Path(RUN) / "report.html").read_text()
