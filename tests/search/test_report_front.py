"""The front in the report: marks where the scores are, lopsided intervals, nothing of a closed holdout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_pages import page_with, resolved, shared_run

from search import pareto
from search.report.facts import Facts
from search.report.front import MOST_ROWS, front_section, front_table
from search.report.front_labels import label_sides
from search.report.front_plots import MARKS, MOST_PAIRS, Frame, pair, parallel, places
from search.results import Results

SyntheticRun = Callable[..., Results]


def traces_of(results: Results, view: str) -> list[dict[str, Any]]:
    """Of the first drawing of the front, with columns filled in; lines between marks left out."""
    traces = resolved(page_with(results, front_section))[0]["traces"]
    return [each for each in traces if each["meta"]["view"] == view and each["mode"] != "lines"]


@pytest.mark.slow
@pytest.mark.parametrize(("objectives", "drawings"), [(1, 1), (2, 1), (3, 3), (4, 7)])
def test_drawings_are_valid_and_described(
    tmp_path: Path, synthetic_run: SyntheticRun, objectives: int, drawings: int
) -> None:
    import plotly.graph_objects as go

    page = page_with(shared_run(synthetic_run, tmp_path, objectives=objectives, candidates=24), front_section)
    figures = [each for each in resolved(page) if each["id"].startswith("front-")]
    assert len(figures) == drawings
    for figure in figures:
        go.Figure(data=figure["traces"], layout=figure["layout"])  # refuses unknown properties and values
        assert {trace["visible"] for trace in figure["traces"] if trace["meta"]["view"] == "holdout"} == {False}
        for trace in figure["traces"]:
            if trace["mode"] != "lines":
                assert len(trace["customdata"]) == len(trace["x"]) == len(trace["hovertext"])


def test_marks_stand_at_selection_scores_with_the_intervals_of_the_statistics(
    tmp_path: Path, synthetic_run: SyntheticRun
) -> None:
    results = shared_run(synthetic_run, tmp_path)
    across, up = results.objectives.names
    seen = set()
    for trace in traces_of(results, "selection")[1:]:
        for place, id in enumerate(trace["customdata"]):
            seen.add(id)
            for axis, name in (("x", across), ("y", up)):
                interval = results.interval(id, "selection", name)
                assert trace[axis][place] == pytest.approx(interval.value, abs=5.1e-5)
                bars = trace[f"error_{axis}"]
                assert bars["array"][place] == pytest.approx(interval.high - interval.value, rel=6e-3, abs=1e-9)
                assert bars["arrayminus"][place] == pytest.approx(interval.value - interval.low, rel=6e-3, abs=1e-9)
    assert seen == {*results.front, results.chosen, *(each.candidate for each in results.baselines)}


def test_every_scored_candidate_is_a_dot_and_none_other(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = shared_run(synthetic_run, tmp_path)
    cloud = traces_of(results, "selection")[0]
    scored = [each.id for each in results.candidates if each.state == "complete"]
    assert cloud["customdata"] == scored
    names = results.objectives.names
    expected = [tuple(results.scores["search"][id][name][0] for name in names) for id in scored]
    assert list(zip(cloud["x"], cloud["y"], strict=True)) == [pytest.approx(each, abs=5.1e-5) for each in expected]


def test_holdout_scores_only_of_what_was_opened(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = shared_run(synthetic_run, tmp_path)
    shown = {id for trace in traces_of(results, "holdout") for id in trace["customdata"]}
    assert shown == set(results.scores["holdout"]) and not set(results.front) <= shown
    page = page_with(results, front_section)
    told = {int(id) for id, views in page.data["front"]["places"].items() if "holdout" in views}
    assert told == shown
    closed = replace(results, state="interrupted", scores={**results.scores, "holdout": {}})
    assert not traces_of(closed, "holdout") and "front-view" not in page_with(closed, front_section).text


def test_hover_has_the_whole_interval(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = shared_run(synthetic_run, tmp_path)
    found = places(Frame(Facts(results)))
    for id in results.front:
        mark = found[str(id)]["selection"]
        assert mark["split"] == "selection"
        for (value, low, high), name in zip(mark["scores"], results.objectives.names, strict=True):
            interval = results.interval(id, "selection", name)
            assert value == pytest.approx(interval.value, rel=1e-5)
            assert low / 1000 == pytest.approx(interval.low, abs=5.1e-4)
            assert high / 1000 == pytest.approx(interval.high, abs=5.1e-4)


def test_the_table_has_every_member_with_its_scores_and_a_button(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = shared_run(synthetic_run, tmp_path)
    page = page_with(results, front_section)
    caption = next(each for each in page.tables if each.startswith("The front and the named candidates"))
    rows = {int(row[0]): row for row in page.tables[caption][2:]}
    assert set(rows) == {*results.front, results.chosen, *(each.candidate for each in results.baselines)}
    for id in results.front:
        shown = rows[id][2]
        interval = results.interval(id, "selection", results.objectives.names[0])
        assert shown == f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f})"
        kept = results.judge.retention(results.scores["selection"], id)
        assert rows[id][4] == f"{round(100 * kept[0])} %".replace("-", "−")
        assert rows[id][-1] == results.candidate(id).recipe_hash[:12]
    buttons = [
        int(str(each["data-candidate"])) for tag, each in page.elements if tag == "button" and "data-candidate" in each
    ]
    assert set(buttons) >= set(rows)


def test_a_long_front_is_cut_where_the_rule_prefers_least(
    tmp_path: Path, synthetic_run: SyntheticRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = shared_run(synthetic_run, tmp_path)
    assert MOST_ROWS >= 100
    monkeypatch.setattr("search.report.front.MOST_ROWS", 2)
    frame = Frame(Facts(results))
    text = str(front_table(frame))
    named = {each.id for each in frame.facts.named}
    others = [id for id in results.front if id not in named]
    shown = [id for id in others if f'data-candidate="{id}"' in text]
    assert len(others) > 2 == len(shown) and f"of {len(results.front)}" in text
    retained = [results.judge.retention(results.scores["selection"], id) for id in others]
    order = pareto.tchebycheff(retained, [1.0] * 2, [0.0] * 2)
    assert set(shown) == {id for _, id in sorted(zip(order.tolist(), others, strict=True))[:2]}


def test_many_objectives_have_parallel_lines_and_one_pair_at_a_time(
    tmp_path: Path, synthetic_run: SyntheticRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = shared_run(synthetic_run, tmp_path, objectives=4, candidates=24)
    frame = Frame(Facts(results))
    lines = [each for each in parallel(frame).traces if each["meta"]["view"] == "selection"]
    chosen = lines[-1]
    assert chosen["customdata"] == [results.chosen] * 4 and chosen["line"]["width"] == 3
    values = results.values(results.chosen or 0, "selection")
    expected = [target.utility(values[target.name]) for target in results.objectives.targets]
    assert chosen["y"] == pytest.approx(expected, abs=1e-4)
    assert MOST_PAIRS == 6
    monkeypatch.setattr("search.report.front.MOST_PAIRS", 5)
    section = front_section(Facts(results))
    assert section is not None
    assert [plot.hidden for plot in section.figures[0].plots] == [False, False, *[True] * 5]
    assert 'id="front-pair"' in section.body and section.body.count("<option") == 6


def test_a_broken_candidate_does_not_shrink_the_others(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    results = shared_run(synthetic_run, tmp_path)
    lonely = next(id for id in results.scores["search"] if id not in {*results.front, results.chosen, 0, 1, 2, 3})
    far = {**results.scores["search"][lonely], "string.accuracy": (-400.0, 0.01)}
    search = {**results.scores["search"], lonely: far}
    frame = Frame(Facts(replace(results, scores={**results.scores, "search": search})))
    limits = frame.range(frame.facts.targets[0])
    assert limits is not None and -0.2 < limits[0] < limits[1] < 1.2
    assert frame.outside() >= 1


def test_names_that_would_cover_each_other_are_left_to_the_legend() -> None:
    places = {id: (id * 1e-4, 0.0) for id in range(30)} | {99: (1.0, 1.0)}
    names = {id: f"a long name {id}" for id in range(30)}
    found = label_sides(names, places)
    assert 0 in found and 0 < len(found) < 30
    assert label_sides({}, {}) == {} and label_sides({5: "alone"}, {5: (0.3, 0.3)}).keys() == {5}


def test_marks_are_distinct_and_known_to_plotly(tmp_path: Path, synthetic_run: SyntheticRun) -> None:
    import plotly.graph_objects as go

    assert len(set(MARKS.values())) == len(MARKS)
    for symbol in MARKS:
        go.scatter.Marker(symbol=symbol)
    frame = Frame(Facts(shared_run(synthetic_run, tmp_path)))
    assert len(set(frame.marks.values())) == len(frame.marks)
    traces = pair(frame, 0, 1).traces
    star = next(each for each in traces if each["marker"].get("symbol") == ["star"])
    assert star["customdata"] == [frame.facts.results.chosen]


def test_very_many_dots_have_no_intervals_and_it_is_said(
    tmp_path: Path, synthetic_run: SyntheticRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = shared_run(synthetic_run, tmp_path)
    assert len(page_with(results, front_section).data["columns"]["l0"]) == len(results.scores["search"])
    monkeypatch.setattr("search.report.figures.MOST_INTERVALS", 10)
    page = page_with(results, front_section)
    assert page.data["columns"]["l0"] == page.data["columns"]["h1"] == []
    assert "intervals are given for marks alone" in page.text
    mark = page.data["front"]["places"][str(results.chosen)]["selection"]
    assert all(len(each) == 3 for each in mark["scores"])
