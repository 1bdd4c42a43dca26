"""Layers, items and convergence of a report in a real browser: what a reader picks is what is shown, everywhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from search.config import load_config
from search.report.coefficients import layers_of
from search.report.facts import Facts
from search.report.html import write_report
from search.report.progress import progress
from search.report.wins import duels_on
from search.results import Results
from search.run import Run

pytestmark = pytest.mark.slow

Look = Callable[..., Any]
CONFIG = Path(__file__).resolve().parents[2] / "configs" / "nano.yaml"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory, nano_zoo: Path) -> Results:
    """A real finished run with its control."""
    folder = tmp_path_factory.mktemp("runs") / "nano"
    options = ["search.budget.candidates=26", "search.control=true", "search.finalists=4"]
    Run(load_config(CONFIG, options), folder).execute()
    return Results.load(folder)


@pytest.fixture(scope="module")
def report(results: Results) -> Path:
    return write_report(results)


@pytest.fixture(params=["phone", "desktop"])
def sight(request: pytest.FixtureRequest, look: Look, report: Path) -> Iterator[Any]:
    found = look(report, width=request.param, dark=request.param == "phone")
    yield found
    found.keep()
    assert found.complaints() == []


def drawn(page: Page, id: str) -> list[dict[str, Any]]:
    """The traces of a plot as plotly has them."""
    text = page.evaluate(
        "id => JSON.stringify(document.getElementById(id).data.map(({x, y, z, text}) => ({x, y, z, text})))", id
    )
    return list(json.loads(text))


def rows(page: Page, box: str) -> list[list[str]]:
    """The cells of a table."""
    found = page.eval_on_selector_all(
        f"{box} tbody tr", "each => each.map(row => [...row.cells].map(c => c.textContent))"
    )
    return [list(each) for each in found]


def test_any_candidate_can_be_shown_and_compared(sight: Any, results: Results) -> None:
    page, layers = sight.page, layers_of(Facts(results))
    assert layers is not None
    other = next(id for id in layers.candidates if id != results.chosen)
    page.select_option("#layers-candidate", str(other))
    assert f"candidate {other}" in page.inner_text("#layers-says")
    for index, values in enumerate(layers.values(other, "c")):
        cells = [value for line in drawn(page, f"layers-{index}")[0]["z"] for value in line if value is not None]
        assert sorted(cells) == pytest.approx(sorted(value for value in values if value is not None))
    page.select_option("#layers-other", str(results.chosen))
    assert "minus" in page.inner_text("#layers-says")
    one, two = layers.values(other, "c")[0], layers.values(results.chosen or 0, "c")[0]
    expected = [a - b for a, b in zip(one, two, strict=True) if a is not None and b is not None]
    cells = [value for line in drawn(page, "layers-0")[0]["z"] for value in line if value is not None]
    assert sorted(cells) == pytest.approx(sorted(expected))
    page.eval_on_selector("#layers-table", "each => each.closest('details').open = true")
    shown = rows(page, "#layers-table")
    assert [row[0] for row in shown] == [str(group) for group in layers.groups]
    first = [float(row[2].replace("−", "-")) for row in shown if row[2] != "–"]
    assert first == pytest.approx(expected, abs=0.0051)


def test_densities_can_be_looked_at(sight: Any, results: Results) -> None:
    layers = layers_of(Facts(results))
    assert layers is not None and layers.has_densities
    dense = next(id for id, each in layers.candidates.items() if "d" in each)
    sight.page.select_option("#layers-candidate", str(dense))
    sight.page.select_option("#layers-view", "density")
    cells = {value for line in drawn(sight.page, "layers-0")[0]["z"] for value in line if value is not None}
    assert cells == {value for value in layers.values(dense, "d")[0] if value is not None}
    assert "density" in sight.page.get_attribute("#layers-0", "aria-label")


def test_a_candidate_that_is_picked_anywhere_is_shown_everywhere(sight: Any, results: Results) -> None:
    page, found = sight.page, duels_on(Facts(results), "selection")
    other = next(id for id in found.merges if id != results.chosen)
    page.evaluate("id => report.select(id)", other)
    assert f"candidate {other}" in page.inner_text("#layers-says")
    assert page.input_value("#layers-candidate") == str(other) == page.input_value("#items-merge")
    assert f"candidate {other}" in page.inner_text("#items-says")
    expected = {(each.against, each.measure.name, str(each.won), str(each.lost)) for each in found.duels[other]}
    if "selection" in page.inner_text("#items-says"):
        assert {tuple(row[:4]) for row in rows(page, "#items-duels")} == expected


def test_a_candidate_without_item_scores_is_said_to_have_none(sight: Any, results: Results) -> None:
    known = {*results.scores["selection"], *results.scores["holdout"]}
    other = next(each.id for each in results.candidates if each.id not in known and each.state == "complete")
    before = rows(sight.page, "#items-duels")
    sight.page.evaluate("id => report.select(id)", other)
    assert f"Candidate {other} is not compared" in sight.page.inner_text("#items-says")
    assert rows(sight.page, "#items-duels") == before


def test_items_follow_split_opponent_and_metric(sight: Any, results: Results) -> None:
    page, facts = sight.page, Facts(results)
    duels = {(each.against, each.measure.name): each for each in duels_on(facts, "selection").duels[facts.pick or 0]}
    page.select_option("#items-split", label="selection")
    page.select_option("#items-measure", label="language.accuracy")
    page.select_option("#items-against", "base")
    duel = duels["base", "language.accuracy"]
    assert [row[0] for row in rows(page, "#items-won")] == [each.id for each in duel.best]
    assert [row[0] for row in rows(page, "#items-lost")] == [each.id for each in duel.worst]
    texts = [row[2] for row in rows(page, "#items-won")]
    assert texts and all(each.startswith("zed :") for each in texts)  # read again from the zoo's own data
    bars = drawn(page, "items-0")
    won = dict(zip(bars[0]["y"], bars[0]["x"], strict=True))
    lost = dict(zip(bars[1]["y"], bars[1]["x"], strict=True))
    assert won["base"] == duel.won and -lost["base"] == duel.lost


def test_convergence_against_what_the_reader_wants(sight: Any, results: Results) -> None:
    page, found = sight.page, progress(Facts(results))
    last = Facts(results).history.steps[-1]
    for axis, values in (
        ("evaluations", [each.evaluations for each in found.steps]),
        ("items", [each.items for each in found.steps]),
        ("hours", [3600.0 * each.hours for each in found.steps]),  # a run of seconds is drawn in seconds
    ):
        page.check(f'input[name="convergence-axis"][value="{axis}"]')
        lines = drawn(page, "convergence-volume")
        assert len(lines) == 3  # what one coefficient per expert had reached, the control, the run
        end = 3600.0 * last.hours if axis == "hours" else getattr(last, axis)
        assert lines[-1]["x"] == pytest.approx([*values, end], rel=1e-4)
        assert lines[-1]["y"][:-1] == pytest.approx(found.hypervolume, abs=1e-5)


def test_everything_can_be_reached_with_the_keyboard(sight: Any) -> None:
    page = sight.page
    for id in ("layers-candidate", "layers-other", "items-split", "items-merge", "items-against", "items-measure"):
        page.focus(f"#{id}")
        assert page.evaluate("document.activeElement.id") == id
        assert page.evaluate("document.activeElement.labels[0].textContent.trim().length > 1")
    page.focus("#layers-candidate")
    before = page.inner_text("#layers-says")
    page.keyboard.press("ArrowDown")
    assert page.inner_text("#layers-says") != before
