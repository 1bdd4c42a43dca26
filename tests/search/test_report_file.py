"""The report as a file, and the words and numbers it is made of."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_pages import shared_run

from evaluators.contract import Metric
from search.constraints import Constraint
from search.errors import SearchError
from search.ranges import precise
from search.report import html
from search.report.html import write_report
from search.report.markup import Html, element, listed, measured, ranged
from search.report.page import page, script_json
from search.report.section import Section, asset, merged_data
from search.results import Results
from search.statistics import Interval
from search.writing import write_whole

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>%{x}"
SyntheticRun = Callable[..., Results]


def test_a_report_that_cannot_be_written_is_one_paragraph_and_leaves_nothing(
    tmp_path: Path, synthetic_run: SyntheticRun
) -> None:
    results = synthetic_run(tmp_path / "run", candidates=12)
    with pytest.raises(SearchError, match="the report cannot be written"):
        write_report(results, tmp_path / "nowhere" / "report.html")
    (tmp_path / "taken").mkdir()
    with pytest.raises(SearchError, match="the report cannot be written"):
        write_report(results, tmp_path / "taken")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["holdouts.jsonl", "run", "taken"]


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    place = tmp_path / "a.txt"
    write_whole(place, "old \ud800", "the text")
    assert place.read_bytes() == b"old ?"
    (tmp_path / ".a.txt.partial-dead").write_text("left by somebody who was killed")

    def refuse(beside: Path) -> None:
        assert beside.read_text() == "new"
        raise SearchError("no")

    with pytest.raises(SearchError, match="no"):
        write_whole(place, "new", "the text", check=refuse)
    assert [each.name for each in tmp_path.iterdir()] == ["a.txt"] and place.read_bytes() == b"old ?"
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SearchError, match=r"the text cannot be written: this is no file; .*\. Or else$"):
        write_whole(tmp_path / "pipe", "new", "the text", advice="Or else")
    with pytest.raises(SearchError, match="there is no folder"):
        write_whole(tmp_path / "none" / "a", "new", "the text")


@pytest.mark.slow
def test_the_same_run_gives_the_same_report(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = synthetic_run(tmp_path / "run", candidates=12)
    first = write_report(results, tmp_path / "a.html").read_bytes()
    assert write_report(Results.load(tmp_path / "run"), tmp_path / "b.html").read_bytes() == first


def test_json_between_script_tags() -> None:
    data = {"a": [EVIL, "\u2028", math.nan, math.inf, 1.5, None], "b": (True, "<!--")}
    text = script_json(data)
    assert not re.search(r"[<>&\u2028]", text)
    assert json.loads(text) == {"a": [EVIL, "\u2028", None, None, 1.5, None], "b": [True, "<!--"]}


def test_signs_that_turn_the_order_of_words_are_spelled_out() -> None:
    evil, shown = "\u202eevil\u2066 \u05d0", "\\u202eevil\\u2066 \u05d0"
    assert element("p", evil, title=evil) == f'<p title="{shown}">{shown}</p>'
    for text in (evil, f"\\{evil}", "\\u202e", "\\\\\u200f"):  # also behind backslashes, and already spelled out
        spelled = json.loads(script_json([text]))[0]
        assert spelled == text.replace("\u202e", "\\u202e").replace("\u2066", "\\u2066").replace("\u200f", "\\u200f")


def test_words() -> None:
    assert element("p", "<b>", title='"', hidden=True, lang=False) == '<p title="&quot;" hidden>&lt;b&gt;</p>'
    assert listed(["a"]) == "a" and listed(["a", "b"]) == "a and b" and listed(["a", "b", "c"]) == "a, b and c"
    assert [precise(each) for each in (0.0, 0.0123, 0.0996, 3.21, 59.4, 250, 11100)] == [
        "0 ms", "12 ms", "0.1 s", "3.2 s", "59 s", "4 min", "3 h 5 min",
    ]  # fmt: skip


def test_digits_follow_the_range(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    metrics = [Metric("share", "maximize", 0.0, 1.0), Metric("points", "maximize", 0.0, 100.0)]
    small, large = synthetic_run(tmp_path / "run", metrics=metrics, candidates=12).objectives.targets
    assert measured(small, (0.12345, 0.01)) == "0.123 ± 0.020"
    assert measured(large, (-12.345, 1.0)) == "−12.3 ± 2.0"
    assert measured(large, None) == "–"
    assert ranged(small, Interval(0.5, 0.4321, 0.61, 0.95, 9, "t")) == "0.500 (0.432 to 0.610)"
    assert ranged(large, Interval(-1.0, -math.inf, math.inf, 0.95, 1, "none")) == "−1.0 (interval unknown)"
    assert ranged(large, None) == "–"


@pytest.mark.slow
def test_a_file_that_would_be_too_large_takes_less_of_what_is_largest(
    tmp_path: Path, synthetic_run: SyntheticRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = shared_run(synthetic_run, tmp_path)
    whole = len(html.render(results).encode())
    monkeypatch.setattr(html, "MOST_BYTES", whole - 6_000)
    text = html.render(results)
    assert len(text.encode()) <= whole - 6_000
    left_out = re.search(r"To keep the file small, (\d+) candidates of 40 are left out", text)
    assert left_out is not None and int(left_out[1]) > 0


def test_where_nothing_is_feasible_the_candidates_are_shown_all_the_same(
    tmp_path: Path, synthetic_run: SyntheticRun
) -> None:
    limits = [Constraint(f"{each}.accuracy", "at_least", 0.95, 0.9, 0.0, 1.0) for each in ("string", "language")]
    text = html.render(synthetic_run(tmp_path / "run", candidates=14, limits=limits))
    assert "0 of 14 scored candidates kept both on search items, so there is nothing to choose from" in text
    assert "breaks a constraint (14)" in text and "No candidate keeps the constraints on the search split" in text


@pytest.mark.slow
@pytest.mark.parametrize(("objectives", "candidates"), [(3, 5000), (4, 5000)])
def test_six_megabytes_hold_thousands_of_candidates(
    tmp_path: Path, synthetic_run: SyntheticRun, objectives: int, candidates: int
) -> None:
    few = synthetic_run(tmp_path / "run", objectives=objectives, candidates=40)
    chance = np.random.default_rng(0)
    scored = [each for each in few.candidates if each.state == "complete"]
    more, search = list(few.candidates), dict(few.scores["search"])
    for id in range(len(more), candidates):
        like = scored[id % len(scored)]
        more.append(replace(like, id=id, label=""))
        place = np.abs(chance.normal(size=objectives))  # on a ball: a long front
        place *= 0.9 * chance.random() ** 0.1 / np.linalg.norm(place)
        search[id] = {name: (float(each), 0.03) for name, each in zip(search[like.id], place, strict=True)}
    results = replace(few, candidates=tuple(more), scores={**few.scores, "search": search})
    path = write_report(results, tmp_path / "finished.html")
    assert path.stat().st_size <= html.MOST_BYTES
    unfinished = replace(results, chosen=None, finalists=(), state="interrupted")
    assert len(unfinished.front) > 50
    path = write_report(unfinished, tmp_path / "unfinished.html")
    assert path.stat().st_size <= html.MOST_BYTES
    assert f'"id":[{",".join(map(str, range(9)))}' in path.read_text(encoding="utf-8")


def test_sections_share_scripts_and_never_a_name(tmp_path: Path) -> None:
    one = Section("How, and when", Html("<p>1</p>"), data={"one": 1}, scripts=("front",), styles=("details",))
    two = Section("Two", Html("<p>2</p>"), data={"two": 2}, scripts=("mix", "front"), styles=("details",))
    assert (one.key, two.key) == ("how", "two") and merged_data({"own": 0}, [one, two]) == {
        "own": 0,
        "one": 1,
        "two": 2,
    }
    with pytest.raises(ValueError, match="a name of its own"):
        merged_data({"one": 0}, [one])
    text = page("title", Html(), [one, two], {}, "plotly")
    order = [text.index(asset(f"{name}.js")) for name in ("report", "front", "mix")]
    assert order == sorted(order) and text.count(asset("front.js")) == text.count(asset("details.css")) == 1
    assert '<section id="how" aria-labelledby="how-title"><h2 id="how-title">How, and when</h2>' in text
    assert '<a href="#two">Two</a>' in text
