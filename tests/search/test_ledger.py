"""The ledger of holdout openings: counted by content, over runs, through crashes."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from search.errors import SearchError
from search.events import Opened
from search.ledger import LEDGER, Ledger
from search.results import Results
from search.store import CONTROL, DATABASE, Store

SyntheticRun = Callable[..., Results]


def test_looks_are_counted_by_the_data_over_all_runs(tmp_path: Path) -> None:
    one, two = Ledger(tmp_path / "one"), Ledger(tmp_path / "two")
    one.enter({"math": "h1", "code": "h2"}, ["r1", "r2"])
    two.enter({"sums": "h1"}, ["r2", "r3"])  # another evaluator's name, the same data
    two.enter({"other": "h9"}, ["r4"])
    assert one.openings({"anything": "h1"}) == two.openings({"math": "h1"})
    found = one.openings({"math": "h1"})
    assert (found.runs, found.recipes) == (2, 3)
    assert (one.openings({"code": "h2"}).runs, one.openings({"code": "h2"}).recipes) == (1, 2)
    assert one.openings({"x": "unseen"}).runs == 0


def test_the_same_look_is_entered_once_and_order_does_not_matter(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "run")
    for recipes in (["b", "a"], ["a", "b"]):
        ledger.enter({"x": "h"}, recipes)
    assert len(ledger.path.read_text().splitlines()) == 1
    Ledger(tmp_path / "another").enter({"x": "h"}, ["a", "b"])
    assert len(ledger.path.read_text().splitlines()) == 2


@pytest.mark.parametrize("keep", [1, 20, -1])
def test_a_torn_last_line_costs_that_line_only(tmp_path: Path, keep: int) -> None:
    ledger = Ledger(tmp_path / "run")
    ledger.enter({"x": "h"}, ["a"])
    good = ledger.path.read_bytes()
    ledger.enter({"x": "h"}, ["b"])
    second = ledger.path.read_bytes()[len(good):]  # fmt: skip
    ledger.path.write_bytes(good + second[:keep])
    assert ledger.openings({"x": "h"}).recipes == (2 if keep == -1 else 1)  # without its line feed it is still whole
    ledger.enter({"x": "h"}, ["c"])
    found = ledger.openings({"x": "h"})
    assert found.recipes == (3 if keep == -1 else 2)
    assert json.loads(ledger.path.read_text().splitlines()[-1])["recipes"] == ["c"]


def test_lines_that_are_no_entries_are_passed_over(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "run")
    ledger.path.write_text('["run", "data", "recipes"]\n12\nnull\n"run data recipes"\n\n{"run": "x"}\n')
    ledger.enter({"x": "h"}, ["a"])
    assert ledger.openings({"x": "h"}).recipes == 1


@pytest.mark.slow
def test_two_runs_and_a_control_in_one_folder(synthetic_run: SyntheticRun, tmp_path: Path) -> None:
    one = synthetic_run(tmp_path / "one", candidates=24)
    opened = set(one.scores["holdout"])
    ledger = Ledger(one.folder)
    first = ledger.openings(one.started.holdouts)
    assert (first.runs, first.recipes) == (1, len(opened))
    two = synthetic_run(tmp_path / "two", candidates=24, search={"seed": 8})
    hashes = {each.candidate(id).recipe_hash for each in (one, two) for id in each.scores["holdout"]}
    second = ledger.openings(one.started.holdouts)
    assert (second.runs, second.recipes) == (2, len(hashes))
    control = synthetic_run(one.folder / CONTROL, candidates=24, search={"seed": 9, "optimizer": "random"})
    assert not (one.folder / LEDGER).exists()
    hashes |= {control.candidate(id).recipe_hash for id in control.scores["holdout"]}
    third = ledger.openings(one.started.holdouts)
    assert (third.runs, third.recipes) == (2, len(hashes))
    assert (one.folder / DATABASE).exists()


def test_what_cannot_be_written_down_is_not_opened(
    synthetic_run: SyntheticRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = os.open

    def refuse(path: str | Path, flags: int, mode: int = 0o777) -> int:
        if str(path).endswith(LEDGER):
            raise PermissionError(errno.EACCES, "Permission denied")
        return really(path, flags, mode)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refuse)
        results = synthetic_run(tmp_path / "run", candidates=24)
        with pytest.raises(SearchError, match=r"cannot be written .Permission denied.*holdout stays closed"):
            Ledger(tmp_path / "run").enter({"x": "h"}, ["a"])
    assert results.chosen is not None  # it came as far as the choice, and no further
    assert results.scores["holdout"] == {} and results.openings == 0
    store = Store.open(results.folder, read_only=True)
    assert list(store.events(Opened)) == []
    store.close()


def test_a_ledger_that_cannot_be_read_is_an_error_too(tmp_path: Path) -> None:
    (tmp_path / LEDGER).mkdir()
    with pytest.raises(SearchError, match="cannot be read"):
        Ledger(tmp_path / "run").enter({"x": "h"}, ["a"])
