"""What stands on a terminal: every digit at 80 columns, the room used at 200, readable without colour and Unicode."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from search.constraints import Constraint
from search.course import REPEATED, Running
from search.events import Asked, Incident, Resumed, Scored, Told
from search.optimizers.contract import Genome, Outcome
from search.remaining import remaining
from search.report.choice import opening_lines, print_choice
from search.report.console import print_results
from search.report.displays import PlainDisplay, RichDisplay, make_display
from search.report.live import Picture, counts_text, one_line
from search.report.live_data import look_data
from search.report.live_plot import pair_of
from search.report.scatter import Marks, scatter, sparkline
from search.report.score_tables import Row, score_tables
from search.report.terminal import forgiving
from search.results import Results
from search.store import Store
from search.watching import Look, Watcher

SyntheticRun = Any
HOSTILE = "\x1b[2J[bold]gone[/bold]\r\x9b31m\u202eevil"


@pytest.fixture(scope="module")
def finished(synthetic_run: SyntheticRun, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Two objectives, 24 candidates, one of them failed. To be read only."""
    folder = tmp_path_factory.mktemp("finished") / "a run"
    return synthetic_run(folder, candidates=24, failures=lambda id: HOSTILE if id == 20 else None)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def half(synthetic_run: SyntheticRun, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Three objectives, a constraint, 12 of 24 candidates. To be read only."""
    limit = Constraint("language.accuracy", "at_least", 0.1, 0.9, 0.0, 1.0)
    folder = tmp_path_factory.mktemp("half") / "run"
    return synthetic_run(folder, objectives=3, candidates=24, finished=False, limits=[limit])  # type: ignore[no-any-return]


def printed(what: Any, width: int = 80, height: int = 40, **given: Any) -> str:
    out = io.StringIO()
    Console(file=out, width=width, height=height, **given).print(what)
    return out.getvalue()


def in_ascii(what: Any, width: int = 80) -> str:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="ascii", errors="replace")
    Console(file=out, width=width, height=40).print(what)
    out.flush()
    return raw.getvalue().decode("ascii")


# -- the plot ---------------------------------------------------------------------------------------------------------


def test_points_stand_where_they_belong() -> None:
    marks = [Marks([(0.0, 0.0), (1.0, 1.0)], "●", "o", "", "front"), Marks([(0.5, 0.5)], "x", "x", "", "expert")]
    lines = scatter(marks, "one", "two", 43, 15).plain.splitlines()
    canvas = [line.split("│", 1)[1] for line in lines if "│" in line]
    assert len(canvas) == 11 and {len(line) for line in canvas} == {41}
    assert canvas[0] == " " * 40 + "●" and canvas[-1] == "●" + " " * 40 and canvas[5] == " " * 20 + "x" + " " * 20
    assert lines[0].strip() == "two" and "one" in lines[-2] and lines[-2].split() == ["0", "one", "1"]
    assert lines[1].startswith("1│") and lines[11].startswith("0│") and "● front" in lines[-1]


def test_braille_dots_are_at_a_quarter_and_a_half_of_a_character() -> None:
    corners = [(x, y) for x in (0.0, 0.999) for y in (0.001, 1.0)]
    lines = scatter([Marks(corners, "", ".", "", "scored")], "x", "y", 12, 7).plain.splitlines()
    canvas = [line.split("│", 1)[1] for line in lines if "│" in line]
    assert [canvas[0][0], canvas[0][-1], canvas[-1][0], canvas[-1][-1]] == ["\u2801", "\u2808", "\u2840", "\u2880"]


@pytest.mark.parametrize("points", [[], [(0.5, 0.5)], [(float("nan"), 0.5), (float("inf"), 1.0), (0.2, 0.3)]])
def test_few_points_are_no_trouble(points: list[tuple[float, float]]) -> None:
    text = scatter([Marks(points, "", ".", "", "scored")], "x", "y", 30, 10)
    assert max(map(len, text.plain.splitlines())) <= 30


def test_a_sparkline_shows_the_last_value_of_each_share() -> None:
    assert sparkline([0.0, 1.0], 8) == "▁█" and sparkline([1.0] * 5, 3) == "▁▁▁" and sparkline([], 8) == ""
    assert sparkline([0.0, 0.0, 0.0, 1.0], 2) == "▁█"
    assert sparkline([0.0, 0.5, 1.0], 3, ascii_only=True) == "_-^"


# -- tables -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [40, 80, 120, 200])
@pytest.mark.parametrize("columns", [1, 2, 3, 5, 8])
def test_tables_of_scores_lose_no_digit(columns: int, width: int) -> None:
    names = [f"a_long_evaluator_name_{place}.word_error_rate" for place in range(columns)]
    cells = [[f"0.{row}{place}7 [0.1{place}1, 0.9{place}9] (-9{row}%)" for place in range(columns)] for row in range(3)]
    rows = [Row(f"a label of some length ({row})", each) for row, each in enumerate(cells)]
    tables = score_tables("merge (candidate)", names, rows, width)
    text = "".join(printed(table, width) for table in tables)
    assert all(len(line) <= width for line in text.splitlines()) and "…" not in text
    for row in rows:
        assert all(cell in text for cell in row.cells)
    together = re.sub(r"\s", "", text)
    if width >= 80:
        assert len(tables) == {1: 1, 2: 1, 3: 2, 5: 3, 8: 4}[columns] if width == 80 else len(tables) <= 4
    assert together.count("alabel") == 3 * len(tables)


# -- status -----------------------------------------------------------------------------------------------------------


def status(results: Results, width: int) -> str:
    out = io.StringIO()
    print_results(results, Console(file=out, width=width))
    return out.getvalue()


@pytest.mark.parametrize("width", [80, 200])
def test_status_says_what_became_of_the_candidates(finished: Results, width: int) -> None:
    scored = sum(each.state == "complete" for each in finished.candidates)
    repeated = sum(each.state == "duplicate" for each in finished.candidates)
    head = f"24 candidates: {scored} scored, 1 failed" + (f", {repeated} repeated" if repeated else "")
    text = status(finished, width)
    assert all(len(line) <= width for line in text.splitlines())
    assert text.splitlines()[1:3] == ["a run: finished", head]
    assert "[bold]gone[/bold]" in text and "\x1b" not in text and "time left" not in text
    for split, ids in (("selection", finished.front), ("holdout", [finished.chosen])):
        for id in ids:
            for name in finished.objectives.names:
                assert f"{finished.scores[split][id][name][0]:.3f}" in text  # type: ignore[index]


def test_status_of_an_interrupted_run_says_how_long_it_still_takes(half: Results) -> None:
    text = status(half, 80)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "run: interrupted, search, stage " in text and "12 of at most 24 candidates: 12 scored" in text
    estimate = remaining(half.course)
    assert estimate is not None
    assert f"once resumed, time left: {estimate.seconds.duration()}" in " ".join(text.split())
    kept = sum(row[0] <= 0.0 for row in half.violations["search"].values())
    assert f"kept by {kept}/{half.course.states['complete']}: language.accuracy >= 0.1" in text
    assert "▿ breaks a constraint" in printed(Picture("run", Look("running", half.course)))


def test_a_run_in_which_nothing_came_of_anything_has_a_status(synthetic_run: SyntheticRun, tmp_path: Path) -> None:
    results = synthetic_run(tmp_path / "run", candidates=20, failures=lambda id: "NaN")
    text = status(results, 80)
    repeated = results.course.reasons[REPEATED]
    assert f"{20 - repeated} x NaN" in text and "There is no front yet: no candidate is scored yet" in text
    assert "hypervolume" not in text


def test_many_objectives_cost_no_hypervolume(half: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.course.MOST_FOR_VOLUME", 2)
    monkeypatch.setattr("search.results.MOST_FOR_VOLUME", 2)
    monkeypatch.setattr("search.pareto.hypervolume", lambda *_: pytest.fail("computed"))
    half = Results.load(half.folder)
    assert "hypervolume" not in status(half, 80)
    assert half.status()["hypervolume"] is None
    look = Look("running", half.course)
    assert "the front last changed" in printed(Picture("run", look))
    assert look_data("run", look, 0.0)["hypervolume"] is None


def test_a_long_front_is_thinned_and_says_so(half: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.report.console.MOST_ROWS", 2)
    text = status(half, 80)
    assert f"2 of the {len(half.front)} candidates on the front" in " ".join(text.split())


# -- choose -----------------------------------------------------------------------------------------------------------


def test_choose_says_what_it_did_and_what_comes_next(finished: Results) -> None:
    out, chosen = io.StringIO(), finished.chosen
    assert chosen is not None
    print_choice(finished, chosen, "by the rule", Console(file=out, width=80))
    print_choice(finished, chosen, "by the rule", Console(file=out, width=80), split="holdout")
    text = out.getvalue()
    assert all(len(line) <= 80 for line in text.splitlines()) and "…" not in text
    for expert in finished.config.models.experts:
        assert f"coefficients of {expert} by depth" in text
    for split in ("selection", "holdout"):
        for name, (value, _) in finished.scores[split][chosen].items():  # type: ignore[index]
            assert f"{value:.3f}" in text, name
    closed, known, opened = (opening_lines(finished, chosen, before) for before in (None, True, False))
    assert "left closed" in closed[0] and "open already" in known[0] and "looked at the holdout 1 time" in opened[0]
    assert opened[-1] == f"Next: paretomerge export '{finished.folder}' --candidate {chosen} --out DIR"


# -- the picture ------------------------------------------------------------------------------------------------------


def test_the_picture_fits_and_has_every_number(half: Results) -> None:
    course = half.course
    look = Look("interrupted", course, disk=10**12)
    for width in (80, 119, 120, 200):
        text = printed(Picture("run", look), width, 24)
        assert all(len(line) <= width for line in text.splitlines())
        assert len(text.splitlines()) <= 30
        for target in half.objectives.targets:
            value = half.scores["search"][course.best[target.name]][target.name][0]
            assert f"{value:.3f} [" in text and target.name in text
        assert counts_text(course) in text and "once resumed, time left" in text and "12/24" in text
        assert ("◆" in text or "●" in text) and "hypervolume" in text and "disk: 1000 GB free" in text


def test_one_objective_is_drawn_over_the_candidates(synthetic_run: SyntheticRun, tmp_path: Path) -> None:
    results = synthetic_run(tmp_path / "run", objectives=1, candidates=14, finished=False)
    text = printed(Picture("run", Look("interrupted", results.course)))
    assert "● best" in text and re.search(r"0 +candidate +[67]\n", text)


def test_without_unicode_and_colour_it_says_the_same(finished: Results) -> None:
    look = Look("finished", finished.course)
    text = in_ascii(Picture("run", look))
    assert "o front" in text and "* chosen" in text and "hypervolume" in text
    assert "?" not in text  # every sign has one that ASCII has
    plain = printed(Picture("run", look), force_terminal=True, no_color=True)
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", plain)


def test_a_strangers_text_moves_no_cursor(finished: Results) -> None:
    course = Results.load(finished.folder).course
    course.labels[3] = "\x1b]0;title\x07"
    look = Look("running", course)
    course.running[3] = Running(3, "search", 0, 1, 0.0)
    text = printed(Picture("\x1b[31mrun", look)) + one_line("\x1b[31mrun", look, 0.0)
    assert "\x1b" not in text and "\r" not in text and "\u202e" not in text and "\x9b" not in text
    assert "[bold]gone[/bold]" in text


def test_before_the_first_event_and_with_trouble_there_is_a_picture_too() -> None:
    assert "being set up" in printed(Picture("run", Look("setting up", None)))
    assert "not read this time" in printed(Picture("run", Look("setting up", None, "run.db: locked")))
    assert one_line("run", Look("setting up", None), 0.0) == "run: being set up; nothing is stored yet"


def test_what_runs_and_what_was_mended_is_named(synthetic_run: SyntheticRun, tmp_path: Path) -> None:
    synthetic_run(tmp_path / "run", candidates=24, finished=False, search={"fidelity": {"rungs": [40]}})
    store = Store.open(tmp_path / "run")
    given = [Asked(id, 2, Genome((0.5,)), f"new {id}") for id in range(12, 22)]
    store.append(Resumed(24), *given, Incident(13, "worker lost", "its process was killed"))
    store.close()
    course = Watcher(tmp_path / "run").look().course
    assert course is not None
    text = printed(Picture("run", Look("running", course, "", 3 * 10**9), course.at + 5.0))
    assert "under way: 10" in text and "candidate 12, rung 1 of 2, to 40 items, for 5.0 s" in text
    assert "and 4 more" in text and "mended: 1 x worker lost" in text
    assert "candidate 13, worker lost 5.0 s ago: its process was killed" in text
    assert "only 3.0 GB free" in text
    idle = printed(Picture("run", Look("interrupted", course), course.at + 7200.0))
    assert "begun again when the run is resumed: 12, 13" in idle and "last heard of 2 h ago" in idle


def test_the_pair_that_is_shown_is_the_one_that_is_traded(half: Results) -> None:
    course = Results.load(half.folder).course
    for points, pair in (
        ([[k / 10, 0.3 + k / 20, 1.0 - k / 10] for k in range(8)], (0, 2)),
        ([[k / 10, 1.0 - k / 10, (k * 5 % 8) / 10] for k in range(8)], (0, 1)),
    ):
        course._front.ids, course._front.points = list(range(8)), np.array(points)
        assert pair_of(course) == pair


def test_the_data_of_a_look_are_plain_and_agree_with_status(finished: Results) -> None:
    data, facts = look_data("run", Watcher(finished.folder).look(), 0.0), finished.status()
    assert data["state"] == "finished" and data["remaining"] is None and data["running"] == []
    assert data["candidates"]["complete"] + data["candidates"]["duplicate"] == facts["candidates"]["done"]
    assert data["hypervolume"] == pytest.approx(facts["hypervolume"]) and data["items"] == facts["items"]
    assert data["chosen"] == facts["chosen"]["id"]
    assert data["front"] == finished.judge.front(finished.scores["search"])
    assert json.loads(json.dumps(data, allow_nan=False)) == data


# -- run's displays ---------------------------------------------------------------------------------------------------


def events_of(folder: Path) -> list[Any]:
    store = Store.open(folder, read_only=True)
    found = list(store.events())
    store.close()
    return found


def test_plain_lines_say_how_long_it_takes_now_and_then(finished: Results) -> None:
    out, seconds = io.StringIO(), [0.0]
    display = PlainDisplay(out, 24, clock=lambda: seconds[0])
    for event in events_of(finished.folder):
        seconds[0] += 4.0 if isinstance(event, Told) else 0.0
        display.on(event)
    lines = out.getvalue().splitlines()
    places = [place for place, line in enumerate(lines) if line.startswith("time left: ")]
    assert len(places) == 3  # after the third, a minute later, and at the finals
    assert lines[places[0] - 1].startswith("[3/24]") and lines[places[1] - 1].startswith("[18/24]")
    assert "finalists" in lines[places[2] - 1]


def test_a_display_goes_on_where_a_resumed_run_stands(synthetic_run: SyntheticRun, tmp_path: Path) -> None:
    synthetic_run(tmp_path / "run", candidates=40, finished=False)
    out = io.StringIO()
    display = PlainDisplay(out, 40)
    display.turn_to(tmp_path / "run")
    values = {"string.accuracy": 0.5, "language.accuracy": 0.25}
    for event in (
        Asked(20, 1, Genome((0.5,)), "new"), Scored(20, "search", values, values, {"evaluate": 1.0}),
        Told(20, 1, Outcome("complete", (0.5, 0.25), items=240)),
    ):  # fmt: skip
        display.on(event)
    assert out.getvalue().startswith("[21/40] candidate 20: string.accuracy 0.5  language.accuracy 0.25 | front ")
    # the control begins: another run, from its own beginning
    display.turn_to(tmp_path / "run" / "control")
    display.on(events_of(tmp_path / "run")[0])
    display.on(Asked(0, 0, Genome((0.5,)), "new", "base"))
    display.on(Told(0, 0, Outcome("failed", reason="NaN")))
    lines = out.getvalue().splitlines()
    assert "now its control, a random search with the same budget" in lines
    assert lines[-1] == "[1/40] candidate 0 base: failed: NaN"


@pytest.mark.slow
@pytest.mark.parametrize("width", [80, 200])
def test_the_picture_of_run_is_drawn_at_any_moment(finished: Results, width: int) -> None:
    out = io.StringIO()
    display = RichDisplay(Console(file=out, force_terminal=True, width=width, height=24, no_color=True), 30, "run")
    seen = []
    for event in events_of(finished.folder):
        display.on(event)
        text = printed(display, width)
        assert all(len(line) <= width for line in text.splitlines())
        seen.append(text)
    display.close()
    assert any("search, stage per-expert" in text and "under way: candidate" in text for text in seen)
    assert any("selection: the finalists" in text and "of it" not in text for text in seen)
    assert "candidate 20 failed: \\x1b[2J[bold]gone[/bold]" in out.getvalue()


@pytest.mark.parametrize(
    ("terminal", "term", "kind"),
    [(True, "xterm", "RichDisplay"), (True, "dumb", "PlainDisplay"), (False, "xterm", "PlainDisplay")],
)
def test_a_dumb_terminal_gets_lines(monkeypatch: pytest.MonkeyPatch, terminal: bool, term: str, kind: str) -> None:
    monkeypatch.setenv("TERM", term)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    out = io.StringIO()
    out.isatty = lambda: terminal  # type: ignore[method-assign]
    assert type(make_display("auto", 10, out)).__name__ == kind


def test_signs_that_an_encoding_lacks_end_nothing() -> None:
    raw = io.BytesIO()
    out = io.TextIOWrapper(raw, encoding="latin-1")
    print("ties λ=1 …", file=forgiving(out), flush=True)
    assert raw.getvalue() == b"ties ?=1 ?\n"
