"""A run of the first log format is read as it was, and goes on as it would have."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest

from search.results import Results
from search.store import FORMAT, Store

OLD = Path(__file__).parent / "data" / "run_format_1"


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "run"))


def test_it_is_read_as_it_was(old: Path) -> None:
    results = Results.load(old)
    assert (results.state, results.chosen, results.started.version) == ("finished", 24, 1)
    assert results.front == [16, 18, 24, 31, 34, 38]
    assert results.hypervolume == pytest.approx(0.37152777777777773, abs=1e-15)
    assert results.constraints.all == () and results.violations["search"] == {}
    labels = [each.label for each in results.baselines]
    assert labels[:4] == ["base", "expert string", "expert language", "average"]
    assert labels[4].startswith("best single λ (") and labels[5:] == ["best per-expert"]


def test_its_genomes_decode_to_the_recipes_that_were_scored(old: Path) -> None:
    results = Results.load(old)
    for each in results.candidates:
        assert results.recipe(each.id).hash == each.recipe_hash
        space = results.stages[each.stage].space
        assert space.decode(space.encode(results.recipe(each.id))).hash == each.recipe_hash


def test_reading_changes_nothing_and_writing_makes_it_the_present_format(old: Path) -> None:
    before = (old / "run.db").read_bytes()
    Results.load(old)
    assert (old / "run.db").read_bytes() == before
    Store.open(old).close()
    connection = sqlite3.connect(old / "run.db")
    assert connection.execute("SELECT value FROM meta WHERE key = 'format'").fetchone() == (str(FORMAT),)
    connection.close()
    assert Results.load(old).front == [16, 18, 24, 31, 34, 38]


def test_claims_are_made_of_it(old: Path) -> None:
    claims = Results.load(old).claims
    assert claims is not None and claims.best is not None
    assert 24 in claims.indistinguishable
    assert set(claims.optimism) == {"string.accuracy", "language.accuracy"}
